"""What stands inside a page: its scripts and their hashes, JSON, templates, and files of this folder."""

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
    """JSON for a script element: no character that could end the element, a comment, or a line of script."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def inline(code: str) -> str:
    """Our own script, so that the HTML parser sees no end of the element inside it."""
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
    """Vega, Vega-Lite and vega-embed in one script: the Vega-Lite version that Altair writes for, if it is there.

    Kept in the cache folder: putting it together takes two seconds.
    """
    import altair as alt
    import vl_convert

    wanted = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    version = {"vl_version": wanted} if wanted in vl_convert.get_vegalite_versions() else {}
    kept, key = Memo(cache_folder() / "scripts"), f"vl-convert {release('vl-convert-python')}, {version}"
    if (known := kept.get(key)) is not None:
        return known["script"].tobytes().decode()
    script = vl_convert.javascript_bundle(**version)
    kept.put(key, {"script": np.frombuffer(script.encode(), np.uint8)})
    return script


@cache
def template(name: str) -> Any:
    """A page's template: everything that it shows is escaped, and a name that it does not know is an error."""
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
