"""The columns of a caption, by its JSON Schema, as the files in docs/lake must have them."""

import json
import re

from world import ROOT

LAKE = ROOT / "docs" / "lake"
SCHEMA = json.loads((ROOT / "schemas" / "caption.v1.schema.json").read_text())
# Kafka's offsets have 64 bits; a partition's number and an image's sides do not.
LONG = {"source_offset"}
# Each kind in Spark's SQL and in DuckDB's.
TYPES = {
    "text": ("STRING", "VARCHAR"), "time": ("TIMESTAMP", "TIMESTAMPTZ"), "int": ("INT", "INTEGER"),
    "long": ("BIGINT", "BIGINT"), "number": ("DOUBLE", "DOUBLE"),
    "texts by name": ("MAP<STRING, STRING>", "MAP(VARCHAR, VARCHAR)"), "numbers": ("ARRAY<FLOAT>", "FLOAT[]"),
}


def kind(name, field):
    types = field["type"] if isinstance(field["type"], list) else [field["type"]]
    (main,) = (one for one in types if one != "null")
    if main == "string":
        return "time" if field.get("format") == "date-time" else "text"
    if main == "integer":
        return "long" if name in LONG else "int"
    if main == "object":
        assert field["additionalProperties"]["type"] == "string", name
        return "texts by name"
    if main == "array":
        assert field["items"]["type"] == "number", name
        return "numbers"
    assert main == "number", f"{name} is of a type that no column was chosen for"
    return "number"


def wanted(dialect):
    """(name, type, may be NULL) of each column; `dialect` 0 is Spark's SQL, 1 DuckDB's."""
    return [(name, TYPES[kind(name, field)][dialect], name not in SCHEMA["required"] or "null" in field["type"])
            for name, field in SCHEMA["properties"].items()]


def in_sql():
    """The same of captions.sql."""
    body = re.search(r"captions \(\n(.*?)\n\)", (LAKE / "captions.sql").read_text(), re.DOTALL).group(1)
    lines = [re.fullmatch(r"  (\w+) (.+?)( NOT NULL)?,?", line) for line in body.splitlines()]
    return [(line[1], line[2], line[3] is None) for line in lines]


def in_duckdb():
    """Names and types of captions.duckdb.sql, which says nothing of NULL."""
    return re.findall(r"^  (\w+): '(.+)',?$", (LAKE / "captions.duckdb.sql").read_text(), re.MULTILINE)


def iceberg_schema():
    """The table of captions.sql, as Spark would make it."""
    from pyiceberg import types
    from pyiceberg.schema import Schema

    plain = {"STRING": types.StringType(), "TIMESTAMP": types.TimestamptzType(), "INT": types.IntegerType(),
             "BIGINT": types.LongType(), "DOUBLE": types.DoubleType()}
    fields, spare = [], iter(range(1000, 2000))
    for number, (name, written, nullable) in enumerate(in_sql(), start=1):
        made = plain.get(written)
        if written.startswith("MAP"):
            made = types.MapType(next(spare), types.StringType(), next(spare), types.StringType(), False)
        elif written.startswith("ARRAY"):
            made = types.ListType(next(spare), types.FloatType(), False)
        fields.append(types.NestedField(number, name, made, required=not nullable))
    return Schema(*fields)
