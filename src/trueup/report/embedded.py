"""The parts of a page: its scripts and their hashes, JSON, templates, and files of this folder."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from importlib.metadata import version as release
from typing import Any

import numpy as np

from trueup.store.cache import Memo, cache_folder


def as_json(value: Any) -> str:
    """JSON for a script element, without any character that could end the element, a comment, or a line of script."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def inline(code: str) -> str:
    """One of trueup's own scripts, changed so that the HTML parser sees no end of the element inside it."""
    code = code.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"<(?=/script|!--)", r"\\x3c", code, flags=re.IGNORECASE)


def policy(scripts: Sequence[str]) -> str:
    hashes = (base64.b64encode(hashlib.sha256(s.encode("utf-8")).digest()).decode() for s in scripts)
    allowed = " ".join(f"'sha256-{h}'" for h in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


@cache
def vega() -> str:
    """Vega, Vega-Lite and vega-embed in one script: the Vega-Lite version that Altair writes for, if it is available.

    It is kept in the cache folder, because building it takes two seconds.
    """
    import altair as alt
    import vl_convert

    altair_version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    version = {"vl_version": altair_version} if altair_version in vl_convert.get_vegalite_versions() else {}
    memo, key = Memo(cache_folder() / "scripts"), f"vl-convert {release('vl-convert-python')}, {version}"
    if (stored := memo.get(key)) is not None:
        return stored["script"].tobytes().decode()
    script = vl_convert.javascript_bundle(**version)
    memo.put(key, {"script": np.frombuffer(script.encode(), np.uint8)})
    return script


@cache
def template(name: str) -> Any:
    """A page's template. It escapes everything that it shows, and an unknown name in it is an error."""
    import jinja2

    env = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return env.from_string(asset(name))


def asset(name: str) -> str:
    return resources.files("trueup.report").joinpath(name).read_text(encoding="utf-8")
