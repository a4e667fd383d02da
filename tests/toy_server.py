"""A real HTTP server that speaks enough of the OpenAI protocol to break it, in the ways that servers do.

    toy_server.py --port P --start ready|never|no-memory|exits

What becomes of a request is a word in its messages, "toy:" and a name of ANSWERS. It also starts a child in a
session of its own, as a server's engine may be, and says its pid.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NO_MEMORY = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of "
    "10.00 GiB of which 512.00 MiB is free."
)
METRICS = """# HELP toy:running Requests that run.
# TYPE toy:running gauge
toy:running{engine="0"} 2.0
toy:running{engine="1"} 1.0
# TYPE toy:preempted counter
toy:preempted_total{engine="0"} 4.0
toy:preempted_created{engine="0"} 1.7e+09
toy:kv_used 0.25
toy:kv_used_by_others 0.5
"""


def piece(text: str, **more: object) -> str:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return f"data: {json.dumps({'choices': [choice], **more})}\n\n"


def last(**usage: int) -> str:
    choice = {"index": 0, "delta": {}, "finish_reason": "length"}
    return f"data: {json.dumps({'choices': [choice], 'usage': usage})}\n\ndata: [DONE]\n\n"


def answers(say):
    say(piece(""))
    for text in ("one", " two", " three"):
        say(piece(text))
    say(last(prompt_tokens=11, completion_tokens=3))


def hangs(say):
    say(piece("one"))
    threading.Event().wait()


def goes_on_late(say):
    time.sleep(1.0)
    say(piece("in time"))
    time.sleep(1.25)
    say(piece("too late"))
    say(last(prompt_tokens=11, completion_tokens=2))


def closes(say):
    say(piece("one"))
    return "close"


def ends_early(say):
    say(piece("one"))


def sends_nonsense(say):
    say("data: <html>\n\n")


def sends_half_nonsense(say):
    say(piece("one"))
    say('data: {"choices": [null]}\n\n')


def sends_an_error(say):
    say(piece("one"))
    say('data: {"error": {"message": "the engine is dead"}}\n\n')


def runs_out_of_memory(say):
    say(piece("one"))
    say(f"data: {json.dumps({'error': NO_MEMORY})}\n\n")


def stops_its_keeper(say):
    os.kill(os.getppid(), signal.SIGSTOP)
    answers(say)


def dies(say):
    say(piece("one"))
    os.kill(os.getpid(), signal.SIGKILL)


ANSWERS = {
    function.__name__.replace("_", "-"): function
    for function in (
        *(answers, hangs, goes_on_late, closes, ends_early, sends_nonsense, sends_half_nonsense),
        *(sends_an_error, runs_out_of_memory, stops_its_keeper, dies),
    )
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    ready = True

    def whole(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self) -> None:
        if self.path == "/metrics":
            self.whole(200, METRICS)
        else:
            self.whole(200 if self.ready else 503, "{}")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        found = re.search(r"toy:([\w-]+)", body)
        name = found[1] if found else "answers"
        print(f"asked for {name}", flush=True)
        if name == "answers-500":
            return self.whole(500, json.dumps({"error": "no such luck"}))
        if name == "is-silent":
            threading.Event().wait()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

        def say(text: str) -> None:
            self.wfile.write(f"{len(text.encode()):x}\r\n{text}\r\n".encode())
            self.wfile.flush()

        self.close_connection = ANSWERS[name](say) == "close"
        if not self.close_connection:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing of clients that hung up: tracebacks would push what was asked for out of the log's end."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--start", default="ready", choices=["ready", "never", "no-memory", "exits"])
    arguments = parser.parse_args()
    print("toy server loads", flush=True)
    if arguments.start == "no-memory":
        # The cause stands far above the end, as where one process takes others along.
        print(NO_MEMORY, *(f"  in frame {i}" for i in range(100)), "the engine failed, see above", sep="\n")
        sys.exit(1)
    if arguments.start == "exits":
        sys.exit("no such option")
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    print(f"child {child.pid}", flush=True)
    Handler.ready = arguments.start == "ready"
    Server(("127.0.0.1", arguments.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
