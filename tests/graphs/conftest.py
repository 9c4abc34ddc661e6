"""All ops of `kernels` for a CPU, compiled once for the files that try them."""

from __future__ import annotations

import pytest

from max_zimage.device.dtypes import ModelDtype
from tests.references.op_modules import Ops, Wanted, compile_wanted


@pytest.fixture(scope="session")
def compiled_ops(request: pytest.FixtureRequest) -> dict[tuple[str, ModelDtype], Ops]:
    """File and dtype -> its ops, for those files whose tests run: what each calls `OPS`."""
    modules = {item.module for item in request.session.items if isinstance(item, pytest.Function)}
    wanted = [(module, ops) for module in modules if isinstance(ops := vars(module).get("OPS"), Wanted)]
    named = {module.__name__.rpartition(".")[2]: ops for module, ops in wanted}
    return compile_wanted({name: named[name] for name in sorted(named)})
