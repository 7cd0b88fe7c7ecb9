"""The documentation site: it builds without a warning, and nothing public is missing from it."""

from __future__ import annotations

import ast
import re

import anew
from anew.cli.main import VERBS
from website import api, command_line, errors
from website.build import CONFIG, GENERATED, build

#: Raises that pass on a sentence made elsewhere.
PASSED_ON = {
    "device/e5rt/functions.py",
    "device/emulator/engine.py",
    "device/objc.py",
    "device/worker/process.py",
    "finetune/rows.py",
    "frontend/placement.py",
    "mil/ops/constexpr.py",
    "mil/ops/matmul.py",
    "mil/ops/pooling.py",
    "train/checkpoint.py",
}


def test_the_site_builds_strictly_and_has_every_page(tmp_path):
    build(tmp_path / "site")
    pages = re.findall(r'"([\w/-]+)\.md"', CONFIG.read_text())
    assert {name.removesuffix(".md") for name in GENERATED} < set(pages)
    for page in pages:
        text = (tmp_path / "site" / f"{page}.html").read_text()
        assert "<h1" in text, page
        assert "```" not in text, f"a code block of {page} is not read as one"
        assert not re.search(r'(?:src|<link [^>]*rel="stylesheet"[^>]*href)="https?:', text), (
            f"{page} fetches something"
        )
    assert (tmp_path / "site" / "evidence" / "demo-report-1280.png").is_file()


def test_every_page_of_docs_is_in_the_navigation():
    from website.build import ROOT

    listed = set(re.findall(r'"([\w-]+\.md)"', CONFIG.read_text()))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} | {"index.md"} == listed


def test_every_verb_and_flag_has_a_description():
    verbs = command_line.verbs()
    assert len(verbs) == len(VERBS)
    page = command_line.page()
    for name, parser in verbs.items():
        assert f"\n## anew {name}\n" in page
        assert parser.description, name
        for flag, text in command_line.flags(parser):
            assert text, f"anew {name} {flag}"


def test_every_public_name_is_documented():
    page = api.page()
    for name, value in api.members().items():
        assert f"\n## anew.{name}\n" in page
        assert len((value.__doc__ or "").strip()) > 30, name
    assert set(anew.__all__) - api.members().keys() == {"__version__"}


def test_what_public_functions_return_is_documented_attribute_by_attribute():
    import dataclasses
    import inspect

    page = api.page()
    for name, value in api.classes().items():
        assert f"\n## {name}\n" in page
        about = inspect.getdoc(value) or ""
        assert len(about) > 30, name
        for field in dataclasses.fields(value) if dataclasses.is_dataclass(value) else ():
            assert re.search(rf"\b{field.name}\b", about), f"{name}.{field.name}"
    functions = filter(inspect.isfunction, map(api.members().get, anew.__all__))
    returned = {inspect.signature(function).return_annotation for function in functions}
    assert len(returned) > 4
    named = {word for annotation in returned for word in re.findall(r"\b[A-Z]\w+", str(annotation))}
    known = {value.__name__ for value in api.classes().values()} | {"None", "Any", "Iterator", "Module", "Tensor"}
    assert named <= known


def test_flags_stand_on_the_page_as_they_are_written():
    page = command_line.page()
    for name, parser in command_line.verbs().items():
        for flag, _ in command_line.flags(parser):
            assert f"| `{flag}` |" in page, name


def test_every_argument_of_a_public_function_is_described():
    import inspect

    for name, value in api.members().items():
        for argument in [] if inspect.isclass(value) else inspect.signature(value).parameters:
            assert re.search(rf"\b{argument}\b", value.__doc__), f"anew.{name}: {argument}"


def test_every_error_is_listed_under_a_topic_with_a_cure():
    known = list(errors.messages())
    page = errors.page()
    assert len(known) > 300
    for message in known:
        topic = errors.topic_of(message.module)
        assert topic is not None, message
        assert topic.cure
        if message.speaks:
            assert message.module in page
        else:
            assert message.module in PASSED_ON, message


def test_every_error_says_what_to_do_or_has_a_cure():
    cures = errors.cures()
    spoken = {message.text: message.module for message in errors.messages() if message.speaks}
    silent = {text for text in spoken if not errors.SAYS.search(text)}
    assert not silent - cures.keys(), "add what to do to the message, or to website/cures.toml"
    assert not cures.keys() - silent, "website/cures.toml has cures of messages that are gone, or say it themselves"
    page = errors.page()
    assert all(do in page for do in cures.values())


def test_a_message_is_told_to_be_silent_about_what_to_do():
    assert not errors.SAYS.search("the layer has 3 heads")
    assert not errors.SAYS.search("cannot read …: …")
    assert errors.SAYS.search("… is a file: give the folder with train.jsonl")
    assert errors.SAYS.search("--seed must be below 2^63, not …")


def test_an_error_of_several_arguments_is_listed_by_the_sentence_that_it_makes():
    from anew.device.framework import FrameworkError

    listed = {message.text for message in errors.messages()}
    assert (
        str(FrameworkError("bind", "IOSurfaceLock", "IOSurface", 7))
        == "bind: IOSurfaceLock failed with IOSurface code 7"
    )
    assert "IOSurfaceLock failed with IOSurface code …" in listed
    assert '… failed with … code …; "…"; …' in listed  # what an NSError says, and what is known of it


def test_no_error_of_anew_is_raised_by_a_name_that_the_page_does_not_know():
    trees = [ast.parse(path.read_text()) for path in errors.PACKAGE.rglob("*.py")]
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    known = {"AnewError"}
    while new := {c.name for c in classes if any(ast.unparse(base) in known for base in c.bases)} - known:
        known |= new
    raised = {ast.unparse(call.func) for tree in trees for _, call in errors.raised(tree, "")}
    assert raised & known <= errors.RAISED.keys()
