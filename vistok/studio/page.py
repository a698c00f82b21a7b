"""The page: inputs and buttons of gradio around the tabs' functions."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from vistok.data.images import load_image
from vistok.data.scenes.vqa import scene_side
from vistok.errors import VistokError
from vistok.pipelines import Pipeline, pipeline
from vistok.studio import compare, paint, see, tokens, write
from vistok.tokenizers.load import LoadedTokenizer, load_tokenizer

CSS = Path(__file__).parent / "studio.css"
FONTS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif")
MONO = ("ui-monospace", "SF Mono", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")
NEW_TOKENS = 96


@dataclass(frozen=True)
class Options:
    """What the studio shows.

    Attributes:
        model: the generator of *Paint*, see ``vistok.pipeline``.
        tokenizer: of *Paint*, where it is not the model's own.
        see: the multimodal model of *See*.
        write: the language model of *Write*.
        draft: its draft model; None for the embedded one of an embedded model.
        device: cpu, cuda or cuda:N; cuda where there is one if None.
    """

    model: str = "llamagen"
    tokenizer: str | None = None
    see: str = "llava-mini"
    write: str = "text-mini"
    draft: str | None = None
    device: str | None = None


class Models:
    """The models of the page, each loaded when it is first used and kept."""

    def __init__(self, options: Options):
        self.options = options
        self._kept: dict[str, Any] = {}
        self._lock = threading.Lock()

    def _keep(self, key: str, load: Callable[[], Any]) -> Any:
        with self._lock:
            if key not in self._kept:
                self._kept[key] = load()
            return self._kept[key]

    def painter(self) -> Pipeline:
        """Returns the pipeline of *Paint*."""
        chosen = self.options
        return self._keep("paint", lambda: pipeline(chosen.model, tokenizer=chosen.tokenizer, device=chosen.device))

    def seer(self) -> tuple[Any, Any]:
        """Returns the multimodal model and its processor."""
        from vistok.eval.answers.ask import load

        return self._keep("see", lambda: load(self.options.see, self.options.device))

    def writer(self) -> tuple[Any, Any]:
        """Returns the language model and its tokenizer."""
        from vistok.zoo.transformers import load_causal_lm

        return self._keep("write", lambda: load_causal_lm(self.options.write, self.options.device or "cpu"))

    def drafter(self) -> Any | None:
        """Returns the draft model of *Write*; None where there is none."""
        from vistok.zoo.transformers import load_causal_lm

        name = self.options.draft or ("text-mini-draft" if self.options.write == "text-mini" else None)
        if name is None:
            return None
        return self._keep("draft", lambda: load_causal_lm(name, self.options.device or "cpu")[0])

    def tokenizer(self, name: str) -> LoadedTokenizer:
        """Returns an embedded tokenizer."""
        return self._keep(f"tokenizer {name}", lambda: load_tokenizer(name, device=self.options.device))


def told(function: Callable[..., Any]) -> Callable[..., Any]:
    """Shows a user's mistake as its one sentence, in place of a traceback."""

    def as_shown(error: VistokError) -> gr.Error:
        return gr.Error(str(error), duration=12, print_exception=False)

    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def stream(*args: Any) -> Any:
            try:
                yield from function(*args)
            except VistokError as error:
                raise as_shown(error) from None

        return stream

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        try:
            return function(*args)
        except VistokError as error:
            raise as_shown(error) from None

    return call


def theme() -> Any:
    """Returns the look of gradio's own parts: fonts of the system, nothing fetched."""
    return gr.themes.Base(primary_hue="teal", neutral_hue="slate", radius_size="lg", font=FONTS, font_mono=MONO).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_600",
        button_primary_text_color="white",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_border_width="1px",
        block_shadow="none",
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
    )


def build(options: Options) -> gr.Blocks:
    """Returns the page with its five tabs."""
    models = Models(options)
    with gr.Blocks(title="vistok studio", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(
            '<header class="vs-head"><h1>vistok <span>studio</span></h1><p>Visual tokens: make them, thin them, '
            "generate them fast.</p></header>"
        )
        with gr.Tabs():
            for title, tab in (
                ("Paint", _paint),
                ("See", _see),
                ("Tokens", _tokens),
                ("Write", _write),
                ("Compare", _compare),
            ):
                with gr.Tab(title, id=title.lower()):
                    tab(models)
    return page


def _empty(text: str) -> str:
    return f'<div class="vs-empty"><p>{text}</p></div>'


def _picture(path: str | None) -> Any:
    """The uploaded picture, read as all pictures are."""
    return None if path is None else load_image(path)


def _paint(models: Models) -> None:
    pipe = models.painter()
    by_class = pipe.conditional_on == "class"
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            prompt = gr.Textbox(
                value="3" if by_class else "a red circle left of a blue square",
                label="Class" if by_class else "Prompt",
                info=f"0 to {pipe.model.classes - 1}" if by_class else "Enter paints it.",
                max_lines=1 if by_class else 3,
                lines=1,
                elem_id="paint-prompt",
            )
            names = paint.samplers_of(pipe)
            sampler = gr.Dropdown(
                names,
                value=names[min(1, len(names) - 1)],
                label="Sampler",
                info="A name with options, such as sjd:window=24.",
                allow_custom_value=True,
                elem_id="paint-sampler",
            )
            beside = gr.Checkbox(True, label="Beside plain decoding", elem_id="paint-beside")
            with gr.Accordion("Seed, guidance, temperature", open=False):
                seed = gr.Number(3, label="Seed", precision=0)
                guidance = gr.Slider(1, 10, pipe.guidance, step=0.1, label="Guidance scale")
                temperature = gr.Slider(0, 2, pipe.temperature, step=0.05, label="Temperature")
            go = gr.Button("Paint", variant="primary", elem_id="paint-go")
        with gr.Column(scale=3, min_width=320):
            shown = gr.HTML(_empty("The picture appears here while its tokens are decided."), elem_id="paint-out")

    def run(text: str, named: str, plain_too: bool, number: float | None, scale: float, heat: float) -> Any:
        chosen, drawn, plain = (named or "").strip() or None, None, None
        wanted = int(number or 0), scale, heat
        for drawn in paint.paint(pipe, text, chosen, *wanted):
            yield paint.painting_html(pipe, text, drawn)
        if plain_too and chosen not in (None, pipe.family.plain):
            for plain in paint.paint(pipe, text, None, *wanted):
                yield paint.painting_html(pipe, text, drawn, plain)

    inputs = [prompt, sampler, beside, seed, guidance, temperature]
    gr.on([go.click, prompt.submit], told(run), inputs, shown, show_progress="minimal", trigger_mode="once")


def _see(models: Models) -> None:
    scene = gr.State(0)
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            picture = gr.Image(type="filepath", sources=["upload", "clipboard"], label="Picture", height=220)
            another = gr.Button("Take a scene", elem_id="see-scene")
            question = gr.Textbox(label="Question", max_lines=2, elem_id="see-question")
            method = gr.Dropdown(see.methods(), value="vtc-cls", label="Method", elem_id="see-method")
            keep = gr.Slider(5, 100, 25, step=5, label="Tokens that stay, in percent", elem_id="see-keep")
            go = gr.Button("Ask", variant="primary", elem_id="see-go")
        with gr.Column(scale=2, min_width=320):
            shown = gr.HTML(
                _empty("Which patches stay, both answers, and what they cost, appear here."), elem_id="see-out"
            )

    def take(number: int) -> tuple[Any, str, int]:
        image, text = see.example(number, scene_side(models.seer()[0].config))
        return image, text, number + 1

    def run(path: str | None, text: str, name: str, share: float) -> str:
        return see.seen_html(see.see(*models.seer(), _picture(path), text, name, int(share)))

    another.click(told(take), scene, [picture, question, scene])
    gr.on([go.click, question.submit], told(run), [picture, question, method, keep], shown, show_progress="minimal")


def _tokens(models: Models) -> None:
    scene, encoded = gr.State(40), tokens.Encoded()
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            picture = gr.Image(type="filepath", sources=["upload", "clipboard"], label="Picture", height=220)
            another = gr.Button("Take a scene", elem_id="tokens-scene")
            names = tokens.tokenizer_names()
            chosen = gr.CheckboxGroup(names, value=names, label="Tokenizers", elem_id="tokens-names")
            first = gr.Slider(1, 256, 64, step=1, label="First tokens", elem_id="tokens-first")
            go = gr.Button("Tokenize", variant="primary", elem_id="tokens-go")
        with gr.Column(scale=3, min_width=320):
            shown = gr.HTML(
                _empty("The picture from its first tokens, beside JPEG and WebP at equal bytes, appears here."),
                elem_id="tokens-out",
            )

    def take(number: int) -> tuple[Any, int]:
        return see.example(number, 128)[0], number + 1

    def run(path: str | None, which: list[str], count: float) -> Any:
        image = tokens.check_picture(_picture(path))
        if not which:
            raise VistokError("no tokenizer is chosen: tick one.")
        found = []
        for name in which:
            found.append(tokens.rendition(models.tokenizer(name), image, int(count), encoded))
            yield tokens.tokens_html(found)

    another.click(told(take), scene, [picture, scene])
    gr.on([go.click, first.release], told(run), [picture, chosen, first], shown, show_progress="minimal")


def _write(models: Models) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            prompt = gr.Textbox(
                "def read(self, path):\n", label="Text to continue", lines=4, max_lines=12, elem_id="write-prompt"
            )
            names = write.drafters_of(*models.writer(), models.drafter())
            drafter = gr.Dropdown(names, value=names[1], label="Drafter", elem_id="write-drafter")
            length = gr.Slider(8, write.MOST_TOKENS, NEW_TOKENS, step=8, label="New tokens")
            temperature = gr.Slider(0, 2, 0, step=0.1, label="Temperature", info="0 decodes greedily.")
            seed = gr.Number(0, label="Seed", precision=0)
            go = gr.Button("Write", variant="primary", elem_id="write-go")
        with gr.Column(scale=2, min_width=320):
            shown = gr.HTML(_empty("The text appears here as it is decided, drafts in colour."), elem_id="write-out")

    def run(text: str, name: str, count: float, heat: float, number: float | None) -> Any:
        model, words = models.writer()
        for written in write.write(model, words, models.drafter(), text, name, int(count), heat, int(number or 0)):
            yield write.written_html(written)

    inputs = [prompt, drafter, length, temperature, seed]
    go.click(told(run), inputs, shown, show_progress="minimal", trigger_mode="once")


def _compare(models: Models) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            reference = gr.Textbox(label="Reference folder", placeholder="real/", elem_id="compare-reference")
            samples = gr.Textbox(label="Folder to compare", placeholder="generated/", elem_id="compare-samples")
            go = gr.Button("Compare", variant="primary", elem_id="compare-go")
        with gr.Column(scale=2, min_width=320):
            shown = gr.HTML(
                _empty("Distances of two folders of pictures, and what both score on GenEval, appear here."),
                elem_id="compare-out",
            )
    run = told(lambda first, second: compare.compared_html(compare.compare(first, second)))
    gr.on([go.click, samples.submit], run, [reference, samples], shown, show_progress="minimal")
