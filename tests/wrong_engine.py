"""Engines that compute something else than the checkpoint says, each in one way, as a bug would."""

from __future__ import annotations

import torch

from crewbench.engines import EngineInfo, Observed
from crewbench.engines.hf import Eager


class Scales(Eager):
    """One layer's attention comes out at half its size."""

    def load(self):
        loaded = super().load()
        attend = self.model.model.layers[1].self_attn
        attend.register_forward_hook(lambda module, given, out: (out[0] * 0.5, *out[1:]))
        return loaded


class RoundsItsWeights(Eager):
    """Holds each weight in the steps of eight bits, one scale for a tensor, and says nothing of it."""

    def load(self):
        loaded = super().load()
        with torch.no_grad():
            for weight in self.model.parameters():
                step = weight.abs().max() / 127
                weight.copy_((weight / step).round() * step)
        return loaded


class Forgets(Eager):
    """Reads the prompt's first half as padding."""

    def observe(self, call, deadline_s):
        generate = self.model.generate

        def half(ids, attention_mask, **options):
            attention_mask[:, : ids.shape[1] // 2] = 0
            return generate(ids, attention_mask=attention_mask, **options)

        self.model.generate = half
        try:
            return super().observe(call, deadline_s)
        finally:
            del self.model.generate


class Penalises(Eager):
    """Its logits are right and its choice is not the best of them."""

    def _generation(self, given):
        generation = super()._generation(given)
        generation.repetition_penalty = 5.0
        return generation


class SaysNothing(Eager):
    """Its last layer overflows."""

    def load(self):
        loaded = super().load()
        with torch.no_grad():
            self.model.lm_head.weight[7].fill_(float("nan"))
        return loaded


class ShowsIds(Eager):
    """Shows no logits but each id's log probability, as servers do; what it computes is right."""

    def observe(self, call, deadline_s):
        seen = super().observe(call, deadline_s)
        logprobs = torch.from_numpy(seen.logits).log_softmax(1)
        chosen = logprobs.gather(1, torch.tensor(seen.output_ids)[:, None])[:, 0]
        return Observed(seen.output_ids, logprobs=chosen.tolist())


class ScalesAndShowsIds(ShowsIds, Scales):
    """Both."""


def info(cls: type) -> EngineInfo:
    return EngineInfo(__name__, cls.__name__, cls.__doc__, ("torch",))
