"""Steps that take several datasets instead of the one that they declare.

Kubeflow collects the outputs of one step in a loop into a list, but never the outputs of several steps. A pipeline that
passes the datasets of several steps to one step therefore uses a variant of that step with as many inputs.
"""

import ast
import functools
import inspect
import linecache
import sys
import textwrap
from typing import Any


@functools.cache
def with_datasets(component: Any, count: int) -> Any:
    """Return a variant of a step with `count` datasets as inputs: `dataset`, `dataset_2` and so on.

    Args:
        component: The step, created by `step`; its body passes on all its inputs, as `components/body.py` does.
        count: The number of datasets, at least 1.
    """
    if count == 1:
        return component
    from evasion.components.step import step

    function = component.python_func
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)  # noqa: S101  (a step is a function)
    definition.decorator_list = []
    docstring = [inspect.getdoc(function) or ""]
    for number in range(2, count + 1):
        docstring.append(f"    dataset_{number}: Another such dataset, or none.")
        annotation = ast.parse("Input[Dataset]", mode="eval").body
        definition.args.args.append(ast.arg(f"dataset_{number}", annotation))
        definition.args.defaults.append(ast.Constant(None))
    definition.body[0] = ast.Expr(ast.Constant("\n".join(docstring) + "\n"))  # the arguments come last in a docstring
    source = ast.unparse(ast.fix_missing_locations(tree)) + "\n"
    # kfp reads the source of a step from the file that Python reports for it.
    file = f"<{function.__name__} of {count} datasets>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    namespace = dict(vars(sys.modules[function.__module__]))
    exec(compile(source, file, "exec"), namespace)  # noqa: S102  (this package's own source)
    return step(namespace[function.__name__])
