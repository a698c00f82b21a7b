"""SEED-LLaMA (arXiv 2310.01218): a causal language model over words and the tokens of a SEED, which writes captions of
pictures and draws pictures of captions.

Its vocabulary has ``<img>``, ``</img>`` and a token for each code, ``<img_00000>`` and so on, as the published models'
has; a picture is its codes, from left to right, between the first two.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.codes.generator import CodeGenerator
from vistok.models.codes.plan import ANY, PicturePlan
from vistok.models.interface import TokenSpec
from vistok.tokenizers.seed import Seed

BEGIN, END = "<img>", "</img>"
PLACE = "{picture}"  # of the picture in a prompt


def code_words(count: int) -> list[str]:
    """Returns the names of codes in a vocabulary."""
    return [f"<img_{number:05d}>" for number in range(count)]


class SeedLlamaGenerator(CodeGenerator):
    """A SEED-LLaMA. Guidance leads away from the pictures that follow ``<img>`` alone.

    Args:
        network: the causal LM.
        vocabulary: its tokenizer, which pads on the left.
        seed: whose codes it knows.

    Raises:
        VistokError: the vocabulary lacks a code, ``<img>`` or ``</img>``.
    """

    family: ClassVar[str] = "seed-llama"

    def __init__(self, network: nn.Module, vocabulary: Any, seed: Seed):
        names = [BEGIN, END, *code_words(seed.config.codebook_size)]
        known = vocabulary.get_vocab()
        if missing := [name for name in names if name not in known]:
            raise VistokError(
                f"the vocabulary of this language model lacks {', '.join(missing[:3])}: name a SEED-LLaMA, and with "
                f"--tokenizer the SEED of {seed.config.codebook_size} codes that belongs to it."
            )
        begin, end, *codes = (known[name] for name in names)
        count = seed.config.num_tokens
        super().__init__(network, PicturePlan.of_tokens(torch.tensor(codes), [ANY] * count, count))
        self.tokens = TokenSpec("codes", len(codes), count, layout="sequence")
        self.vocabulary = vocabulary
        self.register_buffer("brackets", torch.tensor([begin, end]), persistent=False)
        self.register_buffer("vectors", seed.quantize.codebook.detach().clone(), persistent=False)

    @property
    def backbone(self) -> nn.Module:
        return self.network.model

    @property
    def codebook(self) -> Tensor:
        """Vectors of the codes, [K, D]."""
        return self.vectors

    def image_tokens(self, drawn: Tensor) -> Tensor:
        """Returns the codes [B, n]: what is drawn."""
        return drawn

    @torch.no_grad()
    def describe(self, tokens: Tensor, prompt: str = PLACE, length: int = 64) -> list[str]:
        """Writes about pictures what is likeliest, word by word.

        Args:
            tokens: their codes, int64 [B, n].
            prompt: what is asked, with ``{picture}`` where the picture stands; of a model that was tuned to follow
                instructions ``"USER: {picture}Describe this picture.\\nASSISTANT:"``, say.
            length: most new tokens.

        Raises:
            VistokError: the prompt has no place, or several, for the picture.
        """
        before, *behind = prompt.split(PLACE)
        if len(behind) != 1:
            raise VistokError(f"the prompt holds {PLACE} {len(behind)} times: write it once, where the picture stands.")
        begin, end = self.brackets.tolist()
        opening = [*self.vocabulary(before)["input_ids"], begin]
        closing = [end, *self.vocabulary(behind[0], add_special_tokens=False)["input_ids"]]
        codes = self.plan.ids[tokens.to(self.plan.ids.device)]
        front, back = (codes.new_tensor(each).expand(len(codes), -1) for each in (opening, closing))
        ids = torch.cat([front, codes, back], 1)
        written = self.network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=length,
            do_sample=False,
            pad_token_id=self.vocabulary.pad_token_id,
        )
        said = self.vocabulary.batch_decode(written[:, ids.shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in said]
