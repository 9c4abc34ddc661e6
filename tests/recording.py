"""What pytest's fixture `record_property` is: called with a name and a value, which reports keep."""

from collections.abc import Callable

RecordProperty = Callable[[str, object], None]
