"""The one CrewAI adapter: a BaseLLM whose answers come from one of our engines.

CrewAI rebuilds any other object handed to `Agent(llm=...)` as a remote model of the same name, so a
subclass of its own BaseLLM is the only way that keeps the answers local.
"""

from __future__ import annotations

from typing import Any

from crewai import BaseLLM
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from pydantic import PrivateAttr

from crewbench.engines import Completion, Engine

MESSAGE_TYPES = {"system": SystemMessage, "user": HumanMessage, "assistant": AIMessage}


def to_langchain(messages: str | list[dict[str, Any]]) -> list[BaseMessage]:
    """CrewAI's messages as LangChain's. ValueError for a role that no chat template knows."""
    if isinstance(messages, str):
        return [HumanMessage(content=messages)]
    unknown = {m["role"] for m in messages} - MESSAGE_TYPES.keys()
    if unknown:
        raise ValueError(f"cannot pass messages of role {sorted(unknown)} to a chat model")
    return [MESSAGE_TYPES[m["role"]](content=m["content"] or "") for m in messages]


class AgentLLM(BaseLLM):
    """One agent's model for one step. `completions` collects its calls in order."""

    _engine: Engine = PrivateAttr()
    _deadline_s: float = PrivateAttr()
    _completions: list[Completion] = PrivateAttr(default_factory=list)

    def __init__(self, engine: Engine, deadline_s: float) -> None:
        super().__init__(model="crewbench-local", provider="crewbench")
        self._engine = engine
        self._deadline_s = deadline_s

    @property
    def completions(self) -> list[Completion]:
        return self._completions

    def call(self, messages: Any, *args: Any, **kwargs: Any) -> str:
        try:
            completion = self._engine.complete(to_langchain(messages), self._deadline_s)
        except Exception as error:
            made = getattr(error, "completion", None)
            if made is not None:
                self._completions.append(made)
            raise
        self._completions.append(completion)
        self._track_token_usage_internal(
            {
                "prompt_tokens": completion.prompt_tokens,
                "completion_tokens": completion.output_tokens,
                "total_tokens": completion.prompt_tokens + completion.output_tokens,
            }
        )
        return completion.text

    def supports_function_calling(self) -> bool:
        return False

    def supports_stop_words(self) -> bool:
        return False

    def get_context_window_size(self) -> int:
        return self._engine.context_tokens

    def get_input_tokens_count(self, messages: Any, tools: Any = None, response_model: Any = None) -> int:
        return self._engine.count_tokens(to_langchain(messages))
