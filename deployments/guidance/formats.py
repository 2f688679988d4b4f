"""Formats of JSON Schema that a regular expression says more exactly than llguidance does.

llguidance writes the thirtieth of February, and a sixtieth second at any time of the day; parsers of dates refuse both.
"""

import json
from typing import Any

_YEAR = "(000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
_LEAP_YEAR = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"
_DAY = "((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
_DATE = f"({_YEAR}-{_DAY}|{_LEAP_YEAR}-02-29)"
_OFFSET = "([zZ]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_TIME = rf"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{{1,9}})?{_OFFSET}"
PATTERNS = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}[tT]{_TIME}$"}
_VALUES = {"const", "enum", "default", "example", "examples"}  # what they hold is no schema


def exact(schema: str) -> str:
    """A JSON Schema with patterns in place of those formats. RFC 3339 writes each of them."""
    if '"format"' not in schema:
        return schema
    whole = json.loads(schema)
    parts: list[Any] = [whole]
    while parts:
        part = parts.pop()
        if isinstance(part, list):
            parts += part
        elif isinstance(part, dict):
            parts += [one for key, one in part.items() if key not in _VALUES]
            if isinstance(part.get("format"), str) and (pattern := PATTERNS.get(part["format"])):
                also = part.get("allOf", [])
                if isinstance(also, list):  # else it is refused
                    del part["format"]
                    part["allOf"] = [*also, {"pattern": pattern}]
    return json.dumps(whole, ensure_ascii=False)
