"""Steps that take several datasets where they declare one.

Kubeflow gathers in a list what one step makes in a loop, never what several steps make. So a pipeline that hands the
datasets of several steps to one asks here for that step with as many inputs.
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
    """Return a step that has, beside its input `dataset`, `dataset_2` and so on, `count` in all.

    Args:
        component: The step, made by `step`; its body hands all its inputs on, as `components/body.py` does.
        count: How many datasets it takes, at least 1.
    """
    if count == 1:
        return component
    from evasion.components.step import step

    function = component.python_func
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)  # noqa: S101  (a step is a function)
    definition.decorator_list = []
    described = [inspect.getdoc(function) or ""]
    for number in range(2, count + 1):
        described.append(f"    dataset_{number}: Further such images, or nothing.")
        kind = ast.parse("Input[Dataset]", mode="eval").body
        definition.args.args.append(ast.arg(f"dataset_{number}", kind))
        definition.args.defaults.append(ast.Constant(None))
    definition.body[0] = ast.Expr(ast.Constant("\n".join(described) + "\n"))  # the arguments come last in a docstring
    source = ast.unparse(ast.fix_missing_locations(tree)) + "\n"
    # kfp takes the text of a step from where Python says that it stands.
    file = f"<{function.__name__} of {count} datasets>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    names = dict(vars(sys.modules[function.__module__]))
    exec(compile(source, file, "exec"), names)  # noqa: S102  (this package's own source)
    return step(names[function.__name__])
