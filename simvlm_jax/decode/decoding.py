"""How text is generated, as one record: what a config sets, a score's provenance keeps and the functions here read."""

import dataclasses
from typing import Annotated

from simvlm_jax.core.schema import Meta
from simvlm_jax.core.trust import buildable
from simvlm_jax.decode.sampling import Sampler

Pieces = Annotated[int, Meta(ge=0, le=2**20)]
Beams = Annotated[int, Meta(ge=1, le=256)]
"""Every beam has a cache of its own."""


@buildable("how")
@dataclasses.dataclass(frozen=True)
class Decoding:
    """Greedy by default, sampling with a temperature, beam search with more than one beam.

    Args:
      max_length: new pieces, EOS and a forced prefix included; 0 for as many as the model's text length leaves.
      min_length: pieces before an EOS may come, a forced prefix included.
      beams: width of the beam search, 1 for none. n_best: hypotheses returned per row, the best first.
      length_penalty: exponent p of a hypothesis' score, log-likelihood / length^p (EOS counted, a forced prefix not); above
        0 longer ones gain (Wu et al., arXiv 1609.08144, with p as transformers has it).
      repetition_penalty: above 1 makes pieces already generated less likely (Keskar et al., arXiv 1909.05858).
      no_repeat_ngram: no n pieces in a row come twice (Paulus et al., arXiv 1705.04304); 0 for no such rule.
      sampler: temperature, top-k and nucleus; temperature 0 takes the likeliest piece.
    """

    max_length: Pieces = 0
    min_length: Pieces = 0
    beams: Beams = 1
    n_best: Beams = 1
    length_penalty: Annotated[float, Meta(ge=-100, le=100)] = 1.0
    repetition_penalty: Annotated[float, Meta(gt=0, le=1e3)] = 1.0
    no_repeat_ngram: Pieces = 0
    sampler: Sampler = Sampler()

    def __post_init__(self):
        if not 1 <= self.n_best <= self.beams:
            raise ValueError(f"beams {self.beams} and n_best {self.n_best}: need 1 <= n_best <= beams")
        if self.beams > 1 and self.sampler.temperature:
            raise ValueError(
                f"beams {self.beams} with temperature {self.sampler.temperature}: search or sample, not both"
            )
        if self.beams == 1 and self.length_penalty != 1.0:
            raise ValueError(f"length_penalty {self.length_penalty} acts on a beam search alone; set beams too")
        if self.max_length and self.min_length >= self.max_length:
            raise ValueError(
                f"min_length {self.min_length} leaves no room for an EOS within max_length {self.max_length}"
            )
