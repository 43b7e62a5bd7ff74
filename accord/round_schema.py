"""The JSON Schema of a round's configuration, by which editors complete keys, explain them and mark slips.

accord config schema > .accord-schema.json
"""

from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from accord.round_config import RoundConfig


class _WithoutTitles(GenerateJsonSchema):
    """A property's title would be its name in other letters."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def round_schema() -> dict[str, Any]:
    """The schema; what settings mean, and which files a section must name, comes from the classes."""
    schema = RoundConfig.model_json_schema(schema_generator=_WithoutTitles)
    return {"$schema": _WithoutTitles.schema_dialect, **schema, "title": "A round of accord"}
