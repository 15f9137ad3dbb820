"""Documents: every one has a name, a version and a JSON Schema, and the schema says what the document holds."""

import dataclasses

import pytest

from control import schemas


def test_names_are_unique_and_named_alike():
    assert all(name.startswith("nyx.") and name == cls.SCHEMA for name, cls in schemas.DOCUMENTS.items())
    everything = {c for c in vars(schemas).values() if isinstance(c, type) and issubclass(c, schemas.Document)}
    assert everything - {schemas.Document} == set(schemas.DOCUMENTS.values())


@pytest.mark.parametrize("name", list(schemas.DOCUMENTS))
def test_every_document_has_a_schema_with_name_and_version_first(name):
    schema = schemas.json_schema(name)
    cls = schemas.DOCUMENTS[name]
    fields = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    assert list(schema["properties"])[:2] == ["schema", "version"]
    assert schema["properties"]["schema"] == {"const": name}
    assert set(fields) <= set(schema["properties"])


def test_a_document_begins_with_its_name():
    value = schemas.Error("denied", "no").to_json()
    assert list(value.items()) == [("schema", "nyx.error"), ("version", 1), ("code", "denied"), ("message", "no")]


def test_a_row_takes_what_it_knows_and_needs_all_of_it():
    assert schemas.row(schemas.Hop, {"node": "a", "alias": None, "later": 1}) == schemas.Hop("a", None)
    with pytest.raises(KeyError):
        schemas.row(schemas.Hop, {"node": "a"})
