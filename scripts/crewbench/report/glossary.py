"""The report's words, each in a sentence."""

from __future__ import annotations

from crewbench.records import STAGES

OF_STAGES = {
    "spawn": "From asking for a process to its first line.",
    "import": "Loading the worker's libraries; of a server all of its start that its log does not name.",
    "context": "Opening the GPU in a process: its CUDA context.",
    "load": "Reading the weights and copying them to the device.",
    "compile": "Making the engine's code for the device, or reading what lies compiled on disk.",
    "queue": "A step waits for its turn though its inputs are there.",
    "prefill": "From the prompt's ids to the first output id: the model reads the prompt.",
    "decode": "From the first output id to the last: the model writes, one id after another.",
    "framework": "The rest of a step: CrewAI, LangChain, templates, making ids of text and text of ids.",
    "stop": "Ending a worker where the next step waits for that.",
    "idle": "What no other stage explains.",
}
"""Each stage by itself."""

GLOSSARY = (
    ("agent", "One of the crew's members: a CrewAI agent with a role, a goal and a backstory."),
    ("mode", "How the agents are deployed: which workers hold a copy of the model where, and what they run."),
    ("worker", "A process that holds one copy of the model on its devices."),
    ("cell", "One point of the study: mode, number of devices, agents, engine, start state and variant."),
    (
        "engine",
        "What makes the tokens: eager or compiled in the worker's own process, transformers-serve or vllm in "
        "a server.",
    ),
    ("eager", "The engine that is Transformers' generate as it is: the host launches each kernel."),
    (
        "compiled",
        "The engine that is Transformers' generate with a static cache and torch.compile: a token's kernels "
        "are launched as one graph.",
    ),
    (
        "variant",
        "A named set of options of the config, such as a loader or a memory budget; base sets none. Those of "
        "this study stand above.",
    ),
    ("trial", "One repeat of a cell, in processes of its own. The trial is what is counted: n is trials."),
    ("round", "One pass of the crew's work. Round 0 is cold, the others warm, on the same loaded workers."),
    ("cold, warm", "Cold includes starting processes and loading the model; warm does not."),
    (
        "start state",
        "What round 0 starts from: disk (new process, weights not in the page cache), process (new process, "
        "weights in the page cache), zygote (forked from a process that has done the imports).",
    ),
    (
        "compile cache",
        "What an engine that compiles found compiled on disk before its trial: empty or filled. A part of "
        "the start state.",
    ),
    (
        "bandwidth limit",
        "What one agent's decoding cannot exceed: bytes that the device's memory moves in a second, measured "
        "after the trial, over the bytes of weights that a token reads.",
    ),
    (
        "replay",
        "The calls of the last warm round made again straight through the engine, without CrewAI and "
        "LangChain, as many at once as before. What a warm round takes more is the framework's.",
    ),
    (
        "alone",
        "One agent that had a worker and its devices to itself, in a cell with one agent, whatever its mode.",
    ),
    (
        "call",
        "One agent's task as a part of the crew's work: a warm makespan over the number of its tasks.",
    ),
    (
        "repaid",
        "What starts later and calls faster is ahead after so many calls; never, where its calls are not "
        "cheaper, and not shown, where the interval of what one saves includes 0.",
    ),
    ("makespan", "From the start of a round to its last answer, in seconds."),
    ("workflow", "One round of the crew's work, cold or warm; it worked if every step of it did."),
    (
        "certified",
        "So many devices worked in every trial, and on the next fewer that the mode can be on every trial "
        "ran out of memory.",
    ),
    (
        "refuted",
        "A prediction of what fits that trials contradicted: it was to fit and did not, or the reverse.",
    ),
    (
        "bound by",
        "What loaded workers spend their time on or wait for: their turn (serialisation), memory bandwidth, "
        "the host's launches, or a busy device.",
    ),
    (
        "a busy device",
        "A kernel ran at least 80 % of the time and memory is not the bound. How much of the chip kernels "
        "used is not measured.",
    ),
    (
        "settled",
        "The whole interval lies on one side of the threshold; of memory, every trial says the same. Not "
        "settled: it includes the threshold, there is one trial, or trials differ.",
    ),
    ("stages", "Disjoint parts of a makespan along its critical path: " + ", ".join(STAGES) + "."),
    *((stage, OF_STAGES[stage]) for stage in STAGES),
    ("attempt", "One try of a mode that has several; auto-expansion adds a device after an out-of-memory."),
    (
        "interval",
        "95 % interval of a geometric mean (on logarithms: Student's t, from 10 repeats a bootstrap over "
        "trials); a ratio's, paired by repeat. Very wide: its ends are more than 100 times apart, so n says "
        "little.",
    ),
    (
        "agrees, differs",
        "Whether an engine's logits are as near to float32's on the same ids as a plain forward in its type "
        "is, within the threshold. Not observable: its server shows no ids with log probabilities.",
    ),
    (
        "not told apart",
        "The interval of the ratio includes 1. Nothing is called significant under 5 repeats.",
    ),
    (
        "significant",
        "So far from 1 that equal modes would seem so in 5 % of studies at most, corrected for how many "
        "pairs of modes are compared (Holm).",
    ),
    (
        "out of memory",
        "Less memory was free on a device than was asked for: CUDA's own refusal on a GPU, the simulated "
        "budget's on a CPU slot.",
    ),
    (
        "tainted",
        "A trial that met something that may have slowed it, such as another program or a throttled clock, "
        "or that lost readings; kept and named.",
    ),
    ("simulated budget", "The memory of a CPU slot is an account that is kept, not memory that is full."),
)
