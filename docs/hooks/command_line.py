"""Write the pages of the command line (help, and for each verb its help, an example and its keys) and of the errors."""

import contextlib
import inspect
import io
import re
from itertools import groupby
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import histill.error_catalogue
from histill.cli.main import main
from histill.cli.verbs import VERBS, Verb, load_object
from histill.config.describe_keys import Key, describe_keys
from histill.config.load import OneOf

CATALOGUE = Path(histill.error_catalogue.__file__).with_suffix(".md")
EXAMPLES = {  # where they are not named as the job
    "ingest_tiles": ("ingest_slides", "ingest_images"),
    "pretrain_student": ("pretrain_student", "pretrain_embeddings"),
}
PLACES = {"<!-- histill --help -->": ["--help"], "<!-- histill ingest --help -->": ["ingest", "--help"]}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    configs = Path(config.config_file_path).parent / "jobs/configs"
    for verb in VERBS:
        files.append(File.generated(config, f"reference/verbs/{verb.name}.md", content=_page_of(verb, configs)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    for place, argv in PLACES.items():
        if place in markdown:
            help_text = _print_of(argv).partition("\nkeys ")[0]
            shown = help_text[help_text.index("positional arguments") :] if len(argv) > 1 else help_text
            markdown = markdown.replace(place, f"```text\n{shown.strip()}\n```")
    markdown = markdown.replace("<!-- error catalogue -->", escape_tags(CATALOGUE.read_text()))
    links = ", ".join(f"[{verb.name}](verbs/{verb.name}.md)" for verb in VERBS)
    return markdown.replace("<!-- verbs -->", links)


def escape_tags(markdown: str) -> str:
    """`markdown` with placeholders such as <name> shown as they are, which HTML would take for tags."""
    parts = re.split(r"(`[^`]*`)", markdown)  # code is shown as it is in any case
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)


def _print_of(argv: list[str]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        main(argv)
    return printed.getvalue()


def _page_of(verb: Verb, configs: Path) -> str:
    text = escape_tags(inspect.cleandoc(load_object(verb.use_case).__doc__).partition("\nArgs:")[0].rstrip())
    examples = "\n".join(f"histill {verb.name} {example}" for example in verb.examples)
    parts = [
        f"# histill {verb.name}",
        text,
        f"In Python: [`histill.{verb.job}`](../python.md#histill.{verb.job}). As a job: `jobs/{verb.job}.py`.",
        f"```bash\n{examples}\n```",
        "## Keys",
        "How keys are set: [configuration](../configuration.md).",
    ]
    for section, keys in groupby(_keys_of(verb), key=_section_of):
        parts += [f"### {section}"] if section else []
        table = "\n".join(["| key | default | |", "|---|---|---|", *map(_row_of, keys)])
        parts.append(f'<div class="keys" markdown>\n\n{table}\n\n</div>')
    if isinstance(model := load_object(verb.config), OneOf):
        trials = ", ".join(f"[{each.name}]({each.name}.md#keys)" for each in VERBS if each.job in model.models)
        parts.append(f"And the keys of the trials' verb: {trials}.")
    found = [configs / f"{name}.yaml" for name in EXAMPLES.get(verb.job, (verb.job,))]
    if found := [path for path in found if path.exists()]:
        parts.append("## A file with the usual keys")
    parts += [f'```yaml title="jobs/configs/{path.name}"\n{path.read_text().rstrip()}\n```' for path in found]
    return "\n\n".join(parts) + "\n"


def _keys_of(verb: Verb) -> list[Key]:
    """The keys, those of no section first; of a sweep those that its trials do not have."""
    model = load_object(verb.config)
    if isinstance(model, OneOf):
        job = next(iter(model.models))
        of_trials = {key.name for each in VERBS if each.job == job for key in describe_keys(load_object(each.config))}
        keys = [key for key in describe_keys(model.models[job]) if key.name not in of_trials]
    else:
        keys = describe_keys(model)
    return sorted(keys, key=lambda key: bool(_section_of(key)))


def _section_of(key: Key) -> str:
    section, dot, _ = key.name.partition(".")
    return section if dot else ""


def _row_of(key: Key) -> str:
    default = key.default.removeprefix("default ")
    if default != key.default:
        default = f"`{default}`"
    purpose = escape_tags(key.purpose)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in (f"`{key.name}`", default, purpose)) + " |"
