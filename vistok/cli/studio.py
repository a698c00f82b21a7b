"""``vistok studio``."""

from __future__ import annotations

from typing import Annotated

import typer


def studio(
    port: Annotated[int, typer.Option(help="Where the page is served.")] = 7860,
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine reach 0.0.0.0.")] = (
        "127.0.0.1"
    ),
    model: Annotated[str, typer.Option(help="What Paint paints with, as in `vistok sample`.")] = "llamagen",
    tokenizer: Annotated[
        str | None, typer.Option(help="Its image tokenizer, as in `vistok sample`. [default: the model's own]")
    ] = None,
    see: Annotated[str, typer.Option(help="Multimodal model of See, as in `vistok compress --model`.")] = "llava-mini",
    write: Annotated[str, typer.Option(help="Language model of Write, as in `vistok write --model`.")] = "text-mini",
    draft: Annotated[
        str | None, typer.Option(help="Draft model of Write. [default: text-mini-draft for text-mini]")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """A page in the browser: paint, ask, tokenize, write and compare. Works offline; needs `vistok[studio]`.

    Example: `vistok studio --open`
    """
    from vistok.studio.server import check_gradio, check_port, serve

    check_gradio()
    check_port(host, port)
    from vistok.studio.page import Options

    serve(Options(model, tokenizer, see, write, draft, device), host, port, browser)
