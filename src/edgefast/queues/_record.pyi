from typing import Any

class RecordCore:
    def __getattr__(self, name: str) -> Any: ...
