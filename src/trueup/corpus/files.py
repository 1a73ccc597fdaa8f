"""Reads a data file (csv, tsv, jsonl, json, parquet; also gzip) into a Table, and checks its form. `values` checks contents."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import json
import os
import re
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from trueup.corpus.table import Table
from trueup.errors import BadInput, did_you_mean, listing
from trueup.store.inputs import path_of
from trueup.store.schema import TEXT, lists, wrong

KINDS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
"""File endings that `read` knows."""

_OTHER_FILES = re.compile(
    r"\.(txt|text|xlsx?|ods|pkl|pickle|arrow|feather|zip|gz|bz2|xz|zst|npz?|h5|html?|xml|ya?ml|toml|pdf|docx?|md|dat|db)$",
    re.IGNORECASE,
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(:[\w.-]+)?", re.ASCII)


UNPACKED = 2**30
"""The most bytes that a gzip file may unpack to, and the most characters in the requested columns. Without a bound, a file of some
kilobytes could fill the memory."""
MOST_ROWS = 10_000_000
"""The most rows that are read of a file: each row takes memory, however short it is."""
MOST_NAMES = 10_000
"""The most columns whose names are remembered, for a message."""
LONGEST = 2**26
"""The most characters of a line, of a field and of one JSON object: far more than any text has, and at worst 1 or 2 GB as
objects."""
LONGEST_JSON = 2**29
"""The most characters of a JSON list. It is parsed record by record, but its text is in memory as a whole."""

_OTHERS = (
    (b"\xfd7zXZ\0", "packed with xz. Unpack it (`xz -dk`)"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd. Unpack it (`zstd -d`)"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive. Unpack it"),
    (b"Rar!\x1a", "a RAR archive. Unpack it"),
    (b"PAR1", "a parquet file. Let its name end in .parquet"),
    (b"\xd0\xcf\x11\xe0", "an old Office file (such as .xls). Save its sheet as 'CSV UTF-8'"),
    (b"ARROW1", "an arrow (feather) file. Write it as parquet"),
    (b"SQLite format 3\0", "an SQLite database. Write its table as .csv"),
    (b"%PDF-", "a PDF. Write its table as .csv"),
    (b"\x80\x04\x95", "a pickle, which can run code and is not opened. Write it as .csv or parquet"),
    (b"version https://git-lfs", "the pointer of Git LFS to data that are not here. Fetch them (`git lfs pull`)"),
)
"""First bytes of other kinds of files -> what it is and what to do, the middle of a sentence that ends "and give that file"."""


def kind_of(path: Path) -> str:
    """The ending of a file's name that gives its format, without a ``.gz`` after it."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def data_file(source: str | Path) -> Path | None:
    """The file that `source` names, or None if `source` can only be a hub id."""
    path = path_of(source)
    if path.is_dir():
        data_files = _data_files(path)
        if not data_files and isinstance(source, str) and _HUB_ID.fullmatch(source):
            return None  # a folder that has the same name as a dataset of the hub
        raise BadInput(f"'{source}' is a folder. Name one data file; in it there are {listing(data_files)}.")
    if path.exists():
        return path
    looks_like_file = (
        isinstance(source, Path)
        or kind_of(path) in KINDS
        or _OTHER_FILES.search(path.name)
        or not _HUB_ID.fullmatch(str(source))
    )
    if not looks_like_file:
        return None
    if not path.parent.is_dir():
        raise BadInput(f"There is no file '{source}': the folder '{path.parent}' does not exist. Correct the path.")
    if path.is_symlink():
        raise BadInput(f"'{source}' is a link to '{os.readlink(path)}', which is not there. Name the file itself.")
    siblings = _data_files(path.parent)
    raise BadInput(
        f"There is no file '{source}'.{did_you_mean(path.name, siblings)} "
        f"Data files in '{path.parent}': {listing(siblings)}. Correct the path."
    )


def _data_files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if kind_of(p) in KINDS and p.is_file())


def read_file(path: Path, wanted: Sequence[str]) -> Table:
    """The `wanted` columns of one data file, strictly checked for form (not for content).

    Only the names of the other columns are kept, except where a .json file holds an object of columns.
    """
    kind = kind_of(path)
    try:
        if not path.is_file():  # reading a pipe without a writer would wait forever
            raise BadInput(f"'{path}' is no plain file. Write the data to one, and give that.")
        with open(path, "rb") as f:
            packed = (head := f.read(1024))[:2] == b"\x1f\x8b"
        _refuse_others(path, head, kind)
        if kind not in KINDS:
            raise BadInput(
                f"'{path}' ends in '{''.join(path.suffixes[-2:]) if packed else path.suffix}', which trueup does not read. Convert "
                f"it to one of {listing(KINDS)} (and give it that ending)."
            )
        if not head:
            raise BadInput(f"'{path}' is empty (0 bytes). Give a file with rows.")
        raw = _unpacked(path) if packed else None
        if raw is not None:
            _refuse_others(path, raw[:1024], kind)
        if kind == ".parquet":
            table = _parquet(path, raw, wanted)
        else:
            _marked(path, head if raw is None else raw[:4])
            with _text(path, raw) as file:
                if kind in (".csv", ".tsv"):
                    table = _delimited(file, path, "," if kind == ".csv" else "\t", wanted)
                elif kind == ".json":
                    table = _json(file, path, wanted)
                else:
                    table = _json_lines(file, path, wanted)
    except OSError as e:
        raise BadInput(f"'{path}' cannot be read ({e.strerror or e}). Check the file and its permissions.") from e
    if not len(table):
        raise BadInput(f"'{path}' has columns but no rows. Give a file with rows.")
    return table


def _refuse_others(path: Path, head: bytes, kind: str) -> None:
    """Raises BadInput when the first bytes of a file are those of another kind of file, whatever its name."""
    refusal = next((f"{what} and give that file" for magic, what in _OTHERS if head.startswith(magic)), None)
    if head.startswith(b"PAR1") and kind == ".parquet":
        return
    if head.startswith(b"BZh") and head[4:10] == b"1AY&SY":
        refusal = "packed with bzip2. Unpack it (`bzip2 -dk`) and give that file"
    elif head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        refusal = _archive(path)
    elif re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html|\?xml)", head, re.IGNORECASE):
        refusal = "a web page or XML, as a download leaves that failed or needs a login. Fetch the data again"
    elif head[257:262] == b"ustar":
        refusal = "a tar archive. Unpack it and give the file in it"
    if refusal:
        raise BadInput(f"'{path}' is {refusal}.")


def _archive(path: Path) -> str:
    """What a zip file is, and what to do, as the end of a sentence: spreadsheets are zip files too."""
    try:
        with zipfile.ZipFile(path) as z:
            names = z.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        names = []
    if any(n.startswith("xl/") for n in names):
        return "an Excel workbook. Save its sheet as 'CSV UTF-8' and give that file, or give the frame of pandas.read_excel"
    if "mimetype" in names and "content.xml" in names:
        return "an OpenDocument file. Save its sheet as .csv in UTF-8 and give that file"
    data_files = [n for n in names if kind_of(Path(n)) in KINDS]
    return "a zip archive. Unpack it and give the file in it" + (
        f"; there are {listing(data_files, 3)}" if data_files else ""
    )


def _unpacked(path: Path) -> bytes:
    """The unpacked contents of a gzip file, at most `UNPACKED` bytes."""
    try:
        with gzip.open(path) as f:
            raw = f.read(UNPACKED + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise BadInput(f"'{path}' is a gzip file that cannot be unpacked ({e}). Write or fetch it again.") from e
    if not raw:
        raise BadInput(f"'{path}' unpacks to nothing (0 bytes). Give a file with rows.")
    if len(raw) > UNPACKED:
        raise BadInput(
            f"'{path}' unpacks to more than {UNPACKED / 2**30:g} GiB, the most that is read from a gzip file. Unpack it yourself "
            "(`gunzip -k`) and give that file, or give fewer rows."
        )
    if raw[:2] == b"\x1f\x8b":
        raise BadInput(f"'{path}' is packed with gzip twice. Unpack it once (`gunzip`) and give that file.")
    return raw


def _marked(path: Path, head: bytes) -> None:
    """Raises BadInput where a text is in UTF-16 or UTF-32, by its first bytes."""
    marks = {
        "UTF-32": (b"\xff\xfe\0\0", b"\0\0\xfe\xff"), "UTF-16": (b"\xff\xfe", b"\xfe\xff"),
    }  # fmt: skip
    encoding = next((name for name, starts in marks.items() if head.startswith(starts)), None)
    if encoding is None and b"\0" in head[:2]:  # a UTF-8 text never begins so, and a UTF-16 text without the mark does
        encoding = "UTF-16LE" if head[:1] != b"\0" else "UTF-16BE"
    if encoding:
        raise BadInput(
            f"'{path}' is in {encoding}. Save it as UTF-8 (`iconv -f {encoding} -t UTF-8`), then give that file."
        )


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    """The lines of a text, each with its line end, and with at most `LONGEST` characters.

    Raises:
        BadInput: a line is longer, or a byte is not UTF-8.
    """
    number = 0
    while line := file.readline(LONGEST):
        number += 1
        if len(line) == LONGEST:
            raise BadInput(
                f"'{path}', line {number}: it is {LONGEST:,} characters long or longer, and a row of data is not. Write the file "
                "again with one row on each line."
            )
        yield line


@contextmanager
def _text(path: Path, raw: bytes | None) -> Iterator[TextIO]:
    """The text of a file, or of its unpacked contents `raw`, as a stream, because files have no bound on their size."""
    with _bytes(path, raw) as binary, io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as text:
        try:
            yield text
        except UnicodeDecodeError as e:
            raise _not_utf8(path, raw) from e


def _bytes(path: Path, raw: bytes | None) -> BinaryIO:
    return open(path, "rb") if raw is None else io.BytesIO(raw)


def _not_utf8(path: Path, raw: bytes | None) -> BadInput:
    """The error about the first byte that is not UTF-8. The file is read again, because a stream does not know the position."""
    decoder, offset, line = codecs.getincrementaldecoder("utf-8")(), 0, 1
    with _bytes(path, raw) as binary:
        while piece := binary.read(1 << 20):
            try:
                decoder.decode(piece)
            except UnicodeDecodeError as e:
                at = (
                    offset + len(piece) - len(e.object) + e.start
                )  # its object begins with what was left of the last piece
                line += e.object.count(b"\n", 0, e.start)
                return _wrong_byte(path, e.object[e.start], at, line)
            offset, line = offset + len(piece), line + piece.count(b"\n")
    incomplete = decoder.getstate()[0]  # the file ends inside a character
    return _wrong_byte(path, incomplete[0] if incomplete else 0, offset - len(incomplete), line)


def _wrong_byte(path: Path, byte: int, offset: int, line: int) -> BadInput:
    return BadInput(
        f"'{path}' is not UTF-8: byte 0x{byte:02X} at offset {offset} (line {line}) cannot be decoded. "
        "Convert it, for example with `iconv -f LATIN1 -t UTF-8`, then give that file."
    )


class _Rows:
    """Collects the wanted columns of rows, and the names of all others, within the limits on rows and characters."""

    def __init__(self, source: str, unit: str, wanted: Sequence[str]) -> None:
        self.source, self.unit, self.wanted = source, unit, frozenset(wanted)
        self.columns: dict[str, list[Any]] = {}
        self.there: dict[str, None] = {}
        self.at: list[int] = []
        self.held = 0

    def add(self, number: int, row: Iterable[tuple[str, Any]], size: int = 0) -> None:
        """Add a row of names and values. A nested value counts as `size` characters."""
        self._bounded(len(self.at) + 1 > MOST_ROWS, f"more than {MOST_ROWS:,} rows")
        for name, value in row:
            if name in self.wanted:
                column = self.columns.setdefault(name, [])
                column += [None] * (len(self.at) - len(column))
                column.append(value)
                self.held += len(value) if isinstance(value, str) else size if isinstance(value, list | dict) else 0
            if name not in self.there and len(self.there) < MOST_NAMES:
                self.there[name] = None
        self.at.append(number)
        self._bounded(
            self.held > UNPACKED, f"more than {UNPACKED / 2**30:g} GiB of text in {listing(sorted(self.wanted))}"
        )

    def _bounded(self, over: bool, what: str) -> None:
        if over:
            raise BadInput(
                f"{self.source} holds {what}, the most that is read of a file. Give fewer rows, or shorter texts."
            )

    def table(self) -> Table:
        for column in self.columns.values():
            column += [None] * (len(self.at) - len(column))
        return Table(self.columns, self.at, self.unit, self.source, {}, list(self.there))


_FIELD_LIMIT = threading.Lock()


@contextmanager
def _long_fields() -> Iterator[None]:
    """Raises csv's limit on the length of a field inside the block. The limit is one number for the whole process."""
    with _FIELD_LIMIT:
        former_limit = csv.field_size_limit(LONGEST)
        try:
            yield
        finally:
            csv.field_size_limit(former_limit)


def _delimited(file: TextIO, path: Path, delimiter: str, wanted: Sequence[str]) -> Table:
    source, lines = f"'{path}'", _lines(file, path)
    first_line = next(lines, "").lstrip("\ufeff")  # some programs add a byte order mark to one that is already there
    if declared := re.fullmatch(r"sep=([,;\t|])\r?\n", first_line):  # Excel's line that declares the separator
        first_lines = ["\n"]
        delimiter = declared[1]
    else:
        first_lines = [first_line]
        while not first_line.strip() and (first_line := next(lines, "")):
            first_lines.append(first_line)
        if not first_line:
            raise _blank(path)
        delimiter = _sign(first_line, delimiter)
    reader = csv.reader(itertools.chain(first_lines, lines), delimiter=delimiter, strict=True)
    rows = _Rows(source, "line", wanted)
    header: list[str] | None = None
    line = 1
    with _long_fields():
        try:
            for row in reader:
                start, line = line, reader.line_num + 1
                if not row:
                    continue
                if header is None:
                    header = row
                    _check_header(header, source, start)
                elif len(row) != len(header):
                    raise BadInput(
                        f"{source}, line {start}: {len(row)} field{'s' * (len(row) != 1)} found, {len(header)} "
                        f"expected ({listing(header, 6)}). Put fields that hold a {SIGNS[delimiter]} or a line break in double "
                        "quotes."
                    )
                else:
                    rows.add(start, zip(header, row, strict=True))
        except csv.Error as e:
            if "field limit" in str(e):
                raise BadInput(
                    f"{source}, line {line}: a field of the record that starts here is longer than {LONGEST:,} characters, so a "
                    'quote that should end it is missing. Inside a quoted field write each double quote twice ("").'
                ) from e
            raise BadInput(
                f"{source}, line {line}: the quotes of the record that starts here do not close properly ({e}). "
                'Inside a quoted field write each double quote twice ("").'
            ) from e
    if header is None:
        raise BadInput(f"{source} is empty but for its first line. Give a file with rows.")
    return rows.table()


def _blank(path: Path) -> BadInput:
    return BadInput(f"'{path}' is empty (only blank lines). Give a file with rows.")


def _check_header(header: Sequence[str], source: str, line: int) -> None:
    repeated_names = [name for name, n in Counter(header).items() if n > 1]
    if repeated_names:
        raise BadInput(
            f"{source}, line {line}: the header names {listing(repeated_names)} more than once. Rename one of the columns."
        )


SIGNS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}


def _sign(header: str, usual: str) -> str:
    """The separator of the fields, from the header: `usual` if it occurs, unless a .csv has more semicolons than commas."""
    unquoted = re.sub(r'"(?:[^"]|"")*"', "", header)
    if usual in unquoted and not (usual == "," and unquoted.count(";") > unquoted.count(",")):
        return usual
    return max(SIGNS, key=lambda sign: (unquoted.count(sign), sign == usual))


def _json_lines(file: TextIO, path: Path, wanted: Sequence[str]) -> Table:
    source, rows = f"'{path}'", _Rows(f"'{path}'", "line", wanted)
    for n, line in enumerate(_lines(file, path), start=1):  # not splitlines: U+2028 may stand inside a text
        if not line.strip():
            continue
        try:
            record = json.loads(line, parse_constant=_constant, object_pairs_hook=_object)
        except (ValueError, RecursionError) as e:
            problem = f"{e.msg} at column {e.colno}" if isinstance(e, json.JSONDecodeError) else "too deep or too long"
            raise BadInput(
                f"{source}, line {n}: not valid JSON ({problem}). Each line must hold one object, such as "
                '{"text": "...", "label": "..."}.'
            ) from e
        if not isinstance(record, dict):
            raise BadInput(
                f"{source}, line {n}: a {_json_kind(record)} where an object belongs. Each line must hold one object, "
                'such as {"text": "...", "label": "..."}.'
            )
        _each_name_once(record, f"{source}, line {n}")
        rows.add(n, record.items(), len(line))
    if not rows.at:
        raise _blank(path)
    return rows.table()


def _json(file: TextIO, path: Path, wanted: Sequence[str]) -> Table:
    source = f"'{path}'"
    text = file.read(LONGEST_JSON + 1)
    is_list = text.lstrip().startswith("[")
    if not text.strip():
        raise _blank(path)
    try:
        if is_list and len(text) <= LONGEST_JSON:
            return _json_list(text, path, wanted)
        if len(text) > LONGEST or is_list:
            raise BadInput(
                f"{source} is longer than {LONGEST_JSON if is_list else LONGEST:,} characters, the most that is read of one JSON "
                f"{'list' if is_list else 'object'}. Write one object per line and call the file .jsonl, which is read row by row."
            )
        value = json.loads(text, parse_constant=_constant, object_pairs_hook=_object)
    except RecursionError as e:
        raise BadInput(f"{source} is nested too deep. Give a list of objects.") from e
    except json.JSONDecodeError as e:
        if e.msg == "Extra data" and text.lstrip().startswith("{"):
            # JSON Lines under the name .json, as hubs often have them
            return _json_lines(io.StringIO(text, newline="\n"), path, wanted)
        raise BadInput(
            f"{source}, line {e.lineno}, column {e.colno}: not valid JSON ({e.msg}). Correct it there, or write one "
            "object per line and call the file .jsonl."
        ) from e
    except ValueError as e:
        raise BadInput(f"{source} is not valid JSON ({e}). Correct it, or give the data as .csv or .jsonl.") from e
    _each_name_once(value, source)
    if isinstance(value, dict) and len(value) == 1:
        only_value = next(iter(value.values()))
        if isinstance(only_value, list) and only_value and all(isinstance(r, dict) for r in only_value):
            return _records(only_value, source, wanted)  # {"data": [{...}, ...]}
    if isinstance(value, dict) and value and all(isinstance(v, list) for v in value.values()):
        lengths = {k: len(v) for k, v in value.items()}
        if len(set(lengths.values())) > 1:
            raise BadInput(f"{source}: its columns have different lengths ({lengths}). Make them equal.")
        n = next(iter(lengths.values()))
        return Table(value, list(range(1, n + 1)), "record", source, {})
    if isinstance(value, dict) and {"text", "label"} & set(value):
        return _records([value], source, wanted)
    raise BadInput(f"{source} holds a {_json_kind(value)}. Give a list of objects, one for each example.")


_SPACE = re.compile(r"[ \t\n\r]*")


def _json_list(text: str, path: Path, wanted: Sequence[str]) -> Table:
    """The records of a JSON list, parsed one at a time: as Python objects a list takes many times the memory of its text."""
    decoder = json.JSONDecoder(parse_constant=_constant, object_pairs_hook=_object)

    def after(at: int) -> int:
        match = _SPACE.match(text, at)
        return match.end() if match else at

    def records() -> Iterator[Any]:
        at = after(after(0) + 1)
        while text[at : at + 1] != "]":
            value, at = decoder.raw_decode(text, at)
            yield value
            at = after(at)
            if text[at : at + 1] == ",":
                at = after(at + 1)
                if text[at : at + 1] == "]":
                    raise json.JSONDecodeError("Illegal trailing comma before end of array", text, at)
            elif text[at : at + 1] != "]":
                raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
        if after(at + 1) < len(text):
            raise json.JSONDecodeError("Extra data", text, after(at + 1))

    return _records(records(), f"'{path}'", wanted)


def _constant(said: str) -> float | None:
    return None if said == "NaN" else float(said.replace("Infinity", "inf"))


class _Twice(dict[str, Any]):
    """A JSON object in which a name occurs more than once. JSON allows this, and does not define which value counts."""

    name = ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) == len(pairs):
        return members
    ambiguous = _Twice(members)
    ambiguous.name = Counter(name for name, _ in pairs).most_common(1)[0][0]
    return ambiguous


def _each_name_once(record: Any, where: str) -> None:
    """Raises BadInput where a name of a column occurs twice in a record. Objects inside of a column are not checked."""
    if isinstance(record, _Twice):
        raise BadInput(f"{where} names '{record.name}' more than once. Rename one of them.")


def _json_kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "true or false", int: "number", float: "number"}
    return names.get(type(value), "null")


def _records(records: Iterable[Any], source: str, wanted: Sequence[str]) -> Table:
    rows = _Rows(source, "record", wanted)
    for n, record in enumerate(records, start=1):
        if not isinstance(record, dict):
            raise BadInput(
                f"{source}, record {n}: a {_json_kind(record)} where an object belongs. Give a list of objects."
            )
        _each_name_once(record, f"{source}, record {n}")
        rows.add(n, record.items())
    return rows.table()


def _parquet(path: Path, raw: bytes | None, wanted: Sequence[str]) -> Table:
    """Reads only the wanted columns, some rows at a time: a few bytes of a packed column can unpack to any size."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    source, characters_read, column = f"'{path}'", 0, ""
    try:
        with _bytes(path, raw) as f:
            info = pq.ParquetFile(f)
            if info.metadata.num_rows > MOST_ROWS:
                raise BadInput(
                    f"{source} holds {info.metadata.num_rows:,} rows, and {MOST_ROWS:,} are the most that are read of a file. Give "
                    "fewer rows."
                )
            names = info.schema_arrow.names
            repeated_names = [name for name, n in Counter(names).items() if n > 1]
            if repeated_names:
                raise BadInput(
                    f"{source} names the column {listing(repeated_names)} more than once. Rename one of them."
                )
            cols = [name for name in names if name in wanted]
            # Columns of texts are read with their dictionaries: each distinct text is in memory once. Nested ones have none.
            scalar_names = [name for name in cols if not pa.types.is_nested(info.schema_arrow.field(name).type)]
            file = pq.ParquetFile(f, read_dictionary=scalar_names)
            columns: dict[str, list[Any]] = {name: [] for name in cols}
            for batch in file.iter_batches(ROWS, columns=cols) if cols else ():
                for column, values in zip(cols, batch.columns, strict=True):
                    columns[column] += _values(values)
                    characters_read += sum(
                        len(v) for v in columns[column][-len(values) :] if isinstance(v, str | bytes)
                    )
                    if characters_read > UNPACKED:
                        raise BadInput(
                            f"{source}: its column{'s' * (len(cols) > 1)} {listing(cols)} hold more than {UNPACKED / 2**30:g} GiB "
                            "of text, the most that is read from a parquet file. Give fewer rows, or shorter texts."
                        )
            order = _ordered(info, cols)
            rows, metadata = info.metadata.num_rows, info.schema_arrow.metadata
    except (pa.ArrowException, ValueError) as e:
        raise BadInput(
            f"{source} is not a readable parquet file ({str(e).splitlines()[0]}). Write it again, or give the data as "
            ".csv or .jsonl."
        ) from e
    except OverflowError as e:
        raise BadInput(f"{source}, column '{column}': {e}. Write the column as text.") from e
    return Table(columns, range(1, rows + 1), "row", source, _class_names(metadata), names, order)


ROWS = 1024
"""Rows of a parquet file that are read at a time."""


def _values(array: Any) -> list[Any]:
    """The values of an arrow array as Python objects. Values with the same entry of its dictionary are one object."""
    if not hasattr(array, "dictionary"):
        return array.to_pylist()
    entries = array.dictionary.to_pylist()
    places = array.indices.to_pylist()
    if any(i is not None and not 0 <= i < len(entries) for i in places):
        raise ValueError(f"a value of it is none of the {len(entries)} entries of its dictionary")
    return [None if i is None else entries[i] for i in places]


def _ordered(file: Any, here: Sequence[str]) -> dict[str, list[Any]]:
    """The values of each column that was an ordered pandas Categorical or a polars Enum, in their order.

    Where a column was written without its dictionary the order is lost: pandas itself then reads the order of appearance.
    """
    import pyarrow as pa

    row_groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    with_dictionary = {
        g.column(j).path_in_schema
        for g in row_groups[:1]
        for j in range(g.num_columns)
        if g.column(j).has_dictionary_page
    }
    order = {}
    for field in file.schema_arrow:
        if (
            pa.types.is_dictionary(field.type)
            and field.type.ordered
            and field.name in with_dictionary
            and field.name in here
        ):
            values = file.read(columns=[field.name]).column(0).unify_dictionaries()
            order[field.name] = values.chunk(0).dictionary.to_pylist()
    return order


def _class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """The ClassLabel names that the datasets library writes into a parquet file; empty where the metadata has another form."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        kinds = {k: v.get("feature", v) for k, v in features.items() if isinstance(v, dict)}  # of a list, its items'
        labels = {k: v["names"] for k, v in kinds.items() if isinstance(v, dict) and v.get("_type") == "ClassLabel"}
        return {k: names for k, names in labels.items() if wrong(names, lists(TEXT)) is None}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
