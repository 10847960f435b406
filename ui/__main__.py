"""python -m ui: the web demo and the HTTP APIs, over one model and one store of jobs."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from clip.command import at_least_one, attempt
from clip.ranker import DEFAULT_CLIP, Ranker
from diffusion.flags import add_model, open_model
from diffusion.open import AnyPipeline
from diffusion.pipeline import Pipeline
from diffusion.store import Store
from ui.guard import LOOPBACK, MAX_BODY
from ui.safety import OutputCheck, Safe, Terms
from ui.server import Access, create_app, own_temporary_folder, run
from ui.service import MAX_QUEUE, Service

COMMAND = "python -m ui"
TOKEN = "OBORO_TOKEN"
EXAMPLES = """examples:
  python -m ui                                       # http://127.0.0.1:7860
  python -m ui --model path/to/folder --device cuda --dtype float16
  python -m ui --jobs path/to/store                  # the queue and its pictures, kept between starts
  OBORO_TOKEN=... python -m ui --host 0.0.0.0        # for others, who need the token
  python -m ui --blocklist terms.txt --output-check terms.txt
  curl http://127.0.0.1:7860/v1/images/generations -H 'Content-Type: application/json' -d '{"prompt": "a red apple"}'

SIGTERM and Ctrl-C let the step in flight end; what waits is kept in the store, and made after the next start.
exit codes: 0 stopped by SIGTERM; 2 a mistake in what was asked, said in one sentence; 130 stopped by Ctrl-C.
"""


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="The web demo and the HTTP APIs: OpenAI's images API, and AUTOMATIC1111's.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("where it answers, and whom").add_argument
    add("--host", default="127.0.0.1", help="an address of this machine (default: %(default)s: this machine alone)")
    add("--port", type=int, default=7860, help="(default: %(default)s)")
    add("--token", help=f"who asks must send it; better set as ${TOKEN}, for others see commands")
    add("--allow-host", action="append", default=[], metavar="NAME", help="a name that it is called by; again for more")
    add("--no-demo", action="store_true", help="the APIs alone")

    add = parser.add_argument_group("how much").add_argument
    add("--jobs", type=Path, default=Path("outputs/jobs"), metavar="FOLDER", help="the store (default: %(default)s)")
    help = "pictures that may wait, of the model's own size and steps, or as much other work (default: %(default)s)"
    add("--max-queue", type=int, default=MAX_QUEUE, metavar="N", help=help)
    add("--max-body", type=int, default=MAX_BODY, metavar="MIB", help="of a request (default: %(default)s)")
    add("--batch", type=int, default=1, metavar="N", help="pictures of one shape that are made at once (default: 1)")

    add = parser.add_argument_group("what is not made, and not shown").add_argument
    add("--blocklist", type=Path, metavar="FILE", help="refuse prompts with one of its terms, one a line")
    add("--output-check", type=Path, metavar="FILE", help="do not show pictures in which --clip finds one of its terms")
    add("--output-threshold", type=float, metavar="COSINE", help="from where (default: what suits the CLIP)")
    add("--clip", type=Path, default=DEFAULT_CLIP, metavar="FOLDER", help="of a CLIP (default: the shipped emoji-clip)")

    add_model(parser, lora=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    try:
        return attempt(COMMAND, lambda: serve(args))
    except KeyboardInterrupt:
        return 130


def serve(args: argparse.Namespace) -> None:
    access, pipeline = access_of(args), open_model(args)
    service = Service(checked(pipeline, args), Store(args.jobs), args.max_queue, args.batch)
    embeddings = pipeline.embeddings if isinstance(pipeline, Pipeline) else None
    app = create_app(service, access, clip=args.clip, loras=args.folder_of_loras, embeddings=embeddings)
    with own_temporary_folder():
        if not args.no_demo:
            from ui.demo import mount  # Gradio takes longer to import than all else

            mount(app, service)
        print(f"http://{args.host}:{args.port}  {service.pipeline.model.name}, jobs in {args.jobs}", flush=True)
        run(app, service, args.host, args.port)


def access_of(args: argparse.Namespace) -> Access:
    token = args.token or os.environ.get(TOKEN) or None
    if args.host not in LOOPBACK and token is None:
        raise ValueError(f"--host {args.host} is open to other machines, which needs a token; set {TOKEN}, or --token.")
    for flag, value in (("--max-queue", args.max_queue), ("--max-body", args.max_body), ("--batch", args.batch)):
        at_least_one(flag, value)
    return Access(token, {*LOOPBACK, *args.allow_host}, args.max_body)


def checked(pipeline: AnyPipeline, args: argparse.Namespace) -> AnyPipeline:
    """The pipeline, and around it the checks that are asked for."""
    if args.blocklist is None and args.output_check is None:
        return pipeline
    output = None
    if args.output_check is not None:
        output = OutputCheck(Terms(args.output_check), Ranker(args.clip, pipeline.device), args.output_threshold)
    return Safe(pipeline, Terms(args.blocklist) if args.blocklist else None, output)


if __name__ == "__main__":
    sys.exit(main())
