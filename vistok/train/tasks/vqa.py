"""Train a small LLaVA on questions about scenes: tower, projector and language model together, from nothing.

A picture is encoded once for all of its questions: they lie behind its tokens in one sequence, with a mask and position
numbers that let each see the picture and itself only, so each is trained exactly as it will be asked alone. The loss is
on answers. A published tower comes pre-trained on captions; this one learns from what the scene is: linear heads read
the object at each patch from the features that the projector gets, and a summary of the scene from the CLS token.
The heads are not exported.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.data.scenes import BACKGROUNDS, COLOURS, SHAPES, SIZES, render, sample_scenes
from vistok.data.scenes.render import render_masks
from vistok.data.scenes.splits import HELD_OUT
from vistok.data.scenes.vqa import (
    BEGIN,
    END,
    IGNORE,
    IMAGE,
    PAD,
    SLOT,
    USER,
    draw_questions,
    llava_processor,
    question_tokens,
    token_ids,
    vocabulary,
)
from vistok.data.scenes.world import MAX_OBJECTS, Scenes
from vistok.train.export import write_training_card
from vistok.train.recipe import Recipe
from vistok.zoo.registry import resolve

PATCH_CLASSES = (1 + len(SHAPES), 1 + len(COLOURS), 1 + len(SIZES))  # 0: background
CLS_CLASSES = (*[1 + MAX_OBJECTS] * (len(SHAPES) + len(COLOURS)), len(BACKGROUNDS))
LEAST_COVERAGE = 0.2  # of a patch that shows an object


def patch_targets(scenes: Scenes, side: int, patch: int) -> tuple[Tensor, Tensor]:
    """What each patch shows.

    Returns:
        Shape, colour and size of its object, 0 for background, int64 [B, 3, N]; and where the object's centre lies
        as seen from the patch's, in sides of the picture, float32 [B, 2, N], zero for background.
    """
    covered, slot = F.avg_pool2d(render_masks(scenes, side), patch).flatten(2).max(1)  # [B, N]
    classes = torch.stack([kind.gather(1, slot) + 1 for kind in (scenes.shape, scenes.colour, scenes.size)], 1)
    line = (torch.arange(side // patch) + 0.5) * patch / side
    places = torch.stack(torch.meshgrid(line, line, indexing="xy")).flatten(1)  # x, y of each patch
    centres = scenes.centre.float().transpose(1, 2)  # [B, 2, slots]
    offsets = centres.gather(2, slot[:, None].expand(-1, 2, -1)) - places
    shown = (covered > LEAST_COVERAGE)[:, None]
    return classes * shown, offsets * shown


def scene_targets(scenes: Scenes) -> Tensor:
    """How many objects of each shape, then of each colour, then the background, int64 [B, 15]."""
    present = scenes.present[..., None]
    shapes = (F.one_hot(scenes.shape, len(SHAPES)) * present).sum(1)
    colours = (F.one_hot(scenes.colour, len(COLOURS)) * present).sum(1)
    return torch.cat([shapes, colours, scenes.background[:, None]], 1)


def tower_states(tower: nn.Module, images: Tensor) -> list[Tensor]:
    """The hidden states of a CLIP tower, as transformers numbers them: [V, N + 1, C] each."""
    states = [tower.pre_layrnorm(tower.embeddings(images))]
    for layer in tower.encoder.layers:
        states.append(layer(states[-1], None))
    return states


class SceneHeads(nn.Module):
    """What supervises the tower: the object at each patch, and the summary at the CLS token."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.patches = nn.Linear(width, sum(PATCH_CLASSES) + 2)
        self.summary = nn.Linear(width, sum(CLS_CLASSES))

    def forward(self, patches: Tensor, cls: Tensor, classes: Tensor, offsets: Tensor, summary: Tensor):
        """Features [B, N, C] and normalised CLS [B, C] to the losses of patches and of CLS."""
        *logits, found = self.patches(self.norm(patches)).float().transpose(1, 2).split([*PATCH_CLASSES, 2], 1)
        local = sum(F.cross_entropy(x, y) for x, y in zip(logits, classes.unbind(1), strict=True))
        shown = classes[:, :1] > 0
        local = local + 10 * ((found - offsets).square() * shown).sum() / shown.sum().clamp(min=1)
        counts = self.summary(cls).float().split(CLS_CLASSES, -1)
        scene = sum(F.cross_entropy(x, y) for x, y in zip(counts, summary.unbind(1), strict=True)) / len(counts)
        return local, scene


def packed_mask(present: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mask and positions of ``count`` questions that share a prefix, some of whose tokens may be left out.

    Args:
        present: tokens of the prefix that are there, bool [B, P].
        count: questions.

    Returns:
        bool [B, 1, S, S], True where a query may look; int64 [B, S], numbered as if the others were cut out.
    """
    prefix = present.shape[1]
    place = torch.arange(prefix + count * SLOT, device=present.device)
    block = torch.where(place < prefix, -1, (place - prefix) // SLOT)
    allowed = (place[:, None] >= place) & ((block == -1) | (block[:, None] == block))
    there = F.pad(present, (0, count * SLOT), value=True)
    allowed = allowed & (there[:, None] | torch.eye(len(place), dtype=torch.bool, device=place.device))
    inside = present.long().cumsum(1) - 1
    behind = present.sum(1, keepdim=True) + (place[prefix:] - prefix) % SLOT
    return allowed[:, None], torch.cat([inside.clamp(min=0), behind], 1)


def thinned(shown: Tensor, seed: int) -> Tensor:
    """Tokens that stay of each picture: all of 40 % of pictures, a half, a quarter or an eighth of the others'.

    Which ones is drawn with a leaning to objects, to background, or to none, that differs from picture to picture: a
    language model that has seen any mixture cannot count by how many patches show a thing.

    Args:
        shown: whether a token shows an object, bool [B, N].
        seed: of the draw.

    Returns:
        bool [B, N].
    """
    generator = torch.Generator().manual_seed(seed)
    batch, tokens = shown.shape
    shares = torch.tensor([1.0, 1.0, 0.5, 0.25, 0.125])[torch.randint(5, (batch,), generator=generator)]
    leaning = torch.tensor([-0.3, 0.0, 0.4, 1.0])[torch.randint(4, (batch,), generator=generator)]
    scores = torch.rand(batch, tokens, generator=generator) + leaning[:, None] * shown
    rank = scores.argsort(1, descending=True).argsort(1)
    return rank < (shares * tokens)[:, None]


class VqaObjective(nn.Module):
    """Cross-entropy of answers, and the supervision of the tower.

    Args:
        llava: the transformers model.
        supervision: weight of the heads' losses.
    """

    def __init__(self, llava: nn.Module, supervision: float):
        super().__init__()
        self.llava = llava
        self.supervision = supervision
        self.heads = SceneHeads(llava.config.vision_config.hidden_size)
        opening = torch.tensor([token_ids()[BEGIN], token_ids()[USER]])
        self.register_buffer("opening", opening, persistent=False)

    def network(self) -> nn.Module:
        """What is exported."""
        return self.llava

    def visual_tokens(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens for the language model [B, N, D], features of the patches [B, N, C], CLS [B, C]."""
        base = self.llava.model
        states = tower_states(base.vision_tower, images)
        patches = states[base.config.vision_feature_layer][:, 1:]
        return base.multi_modal_projector(patches), patches, base.vision_tower.post_layernorm(states[-1][:, 0])

    def answer_logits(self, visual: Tensor, questions: Tensor, kept: Tensor | None = None) -> Tensor:
        """Logits behind every token of questions [B, K, SLOT], as if each were asked alone: [B, K, SLOT, words].

        ``kept`` bool [B, N] leaves visual tokens out, as if they had been cut.
        """
        language = self.llava.model.language_model
        opening = language.embed_tokens(self.opening).expand(len(questions), -1, -1)
        asked = language.embed_tokens(questions.flatten(1))
        embeds = torch.cat([opening, visual.to(asked.dtype), asked], 1)
        prefix = embeds.shape[1] - asked.shape[1]
        if kept is None:
            kept = torch.ones(visual.shape[:2], dtype=torch.bool, device=visual.device)
        present = F.pad(kept, (prefix - kept.shape[1], 0), value=True)
        mask, positions = packed_mask(present, questions.shape[1])
        hidden = language(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        return self.llava.lm_head(hidden[:, prefix:]).unflatten(1, questions.shape[1:])

    def forward(
        self,
        images: Tensor,
        questions: Tensor,
        targets: Tensor,
        classes: Tensor,
        offsets: Tensor,
        summary: Tensor,
        kept: Tensor | None = None,
    ):
        visual, patches, cls = self.visual_tokens(images)
        logits = self.answer_logits(visual, questions, kept).float()
        answers = F.cross_entropy(logits.flatten(0, 2), targets.flatten(), ignore_index=IGNORE)
        local, scene = self.heads(patches, cls, classes, offsets, summary)
        loss = answers + self.supervision * (local + scene)
        return loss, {"answers": answers.detach(), "patches": local.detach(), "scene": scene.detach()}


def build_llava(model: dict) -> nn.Module:
    """An untrained LLaVA.

    Args:
        model: ``vision`` and ``text``, entries of CLIPVisionConfig and LlamaConfig.
    """
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    ids = token_ids()
    vision = CLIPVisionConfig(**model["vision"])
    special = {"pad_token_id": ids[PAD], "bos_token_id": ids[BEGIN], "eos_token_id": ids[END]}
    text = LlamaConfig(vocab_size=len(vocabulary()), **special, **model["text"])
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=ids[IMAGE],
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
    )
    return LlavaForConditionalGeneration(config)


def load_llava(name: str) -> nn.Module:
    """The LLaVA that a recipe starts from, in float32: embedded, or the folder of an earlier run's export."""
    from transformers import LlavaForConditionalGeneration

    return LlavaForConditionalGeneration.from_pretrained(resolve(name), dtype=torch.float32)


class VqaTask:
    """The ``vqa`` task: a LLaVA on freshly drawn scenes, ``data.questions`` of each.

    With ``data.thin`` it learns to answer from fewer visual tokens too; see :func:`thinned`.
    """

    family = "llava"
    paper = "2310.03744"

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        self.model = self.build()
        vision = self.model.llava.config.vision_config
        self.side, self.patch = vision.image_size, vision.patch_size

    @property
    def supervision(self) -> float:
        return self.recipe.data.get("supervision", 0.5)

    def build(self) -> VqaObjective:
        """What is trained, from new weights or from those that ``init.llava`` names."""
        init = self.recipe.init.get("llava")
        llava = build_llava(self.recipe.model) if init is None else load_llava(init)
        return VqaObjective(llava, self.supervision)

    def pictures(self, scenes: Scenes) -> Tensor:
        """What the objective's ``visual_tokens`` takes."""
        return render(scenes, self.side)

    def patch_targets(self, scenes: Scenes) -> tuple[Tensor, Tensor]:
        """What each patch shows, as :func:`patch_targets`."""
        return patch_targets(scenes, self.side, self.patch)

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Freshly drawn scenes: no picture is seen twice."""
        start = step * self.recipe.batch_size + rows.start
        scenes = sample_scenes(rows.stop - rows.start, self.recipe.data["seed"], start)
        questions, targets = question_tokens(draw_questions(scenes, self.recipe.data["questions"]))
        classes, offsets = self.patch_targets(scenes)
        kept = {"kept": thinned(classes[:, 0] > 0, start)} if self.recipe.data.get("thin") else {}
        return kept | {
            "images": self.pictures(scenes),
            "questions": questions,
            "targets": targets,
            "classes": classes,
            "offsets": offsets,
            "summary": scene_targets(scenes),
        }

    def after_step(self, step: int) -> None:
        """Nothing happens between steps."""

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Share of questions about held-out scenes whose answer is right, in all and by kind."""
        device = self.model.opening.device
        right: dict[str, list[bool]] = {}
        for start in range(0, self.recipe.data.get("eval_scenes", 256), 64):
            scenes = sample_scenes(64, HELD_OUT, start)
            drawn = draw_questions(scenes, self.recipe.data["questions"])
            questions, targets = (x.to(device) for x in question_tokens(drawn))
            visual = self.model.visual_tokens(self.pictures(scenes).to(device))[0]
            said = self.model.answer_logits(visual, questions).argmax(-1)
            hits = ((said == targets) | (targets == IGNORE)).all(-1).tolist()
            for row, hit in zip(drawn, hits, strict=True):
                for question, ok in zip(row, hit, strict=True):
                    right.setdefault(question.kind, []).append(ok)
        everything = [ok for found in right.values() for ok in found]
        return {"exact_match": sum(everything) / len(everything)} | {
            f"exact_match_{kind}": sum(found) / len(found) for kind, found in sorted(right.items())
        }

    def save(self, directory: Path) -> None:
        """Write model and processor."""
        self.model.llava.save_pretrained(directory)
        llava_processor(self.side, self.patch).save_pretrained(directory)

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Write model and processor as transformers reads them, in half precision, and the card."""
        self.model.half()
        self.save(directory)
        parts = {"init": self.recipe.init["llava"]} if "llava" in self.recipe.init else None
        network = self.model.network()
        task = "visual-question-answering"
        write_training_card(directory, self.recipe, network, task, self.family, metrics, steps, parts, self.paper)
