"""All ops of `kernels` for a CPU, compiled once for the files that try them."""

from __future__ import annotations

import pytest

from max_zimage.device.dtypes import ModelDtype
from tests.references.op_modules import Ops, Wanted, compile_wanted


@pytest.fixture(scope="session")
def compiled_ops(request: pytest.FixtureRequest) -> dict[tuple[str, ModelDtype], Ops]:
    """File and dtype -> its ops, for those files whose tests run: what each calls `OPS`."""
    modules = {item.module for item in request.session.items if isinstance(item, pytest.Function)}
    named = {module.__name__.rpartition(".")[2]: vars(module).get("OPS") for module in modules}
    return compile_wanted({name: ops for name, ops in sorted(named.items()) if isinstance(ops, Wanted)})
