"""A parsed Relay program becomes a Relax module: names resolved, calls inlined, operators mapped.

Relay is a functional language, and a network in it a term without side effects: evaluating that
term, with Relax expressions as its values, writes the Relax function. Calls of functions, local or
global, are evaluated in place, so what remains is one straight list of operators.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmsep.contracts import ModelError
from tvmsep.frontends.names import identifier
from tvmsep.frontends.relay import syntax, tree
from tvmsep.frontends.relay.attrs import const, dims
from tvmsep.frontends.relay.ops import OPS
from tvmsep.frontends.relay.params import Array

_MAX_DEPTH = 100
_MAX_CALLS = 20_000
_MAX_ELEMENTS = 1 << 29
_MAX_FOLDED = 1 << 26
_DTYPES = ("float32", "int64", "int32", "bool")
_FOLDED: dict[str, Callable[..., Any]] = {
    "add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": np.divide,
    "negative": np.negative, "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x), "copy": np.copy,
}  # fmt: skip
"""What optimised programs compute of weights, which a convolution needs as constants."""
_RESHAPED = ("reshape", "expand_dims", "squeeze", "nn.batch_flatten")
_WHY = {
    "nn.contrib_": "an operator of an optimised program: save the program before relay.build or "
    "relay.optimize",
    "qnn.": "quantised: integer models are not supported; give the float32 model it was made from",
}


class _Closure:
    """A function and what its body sees."""

    def __init__(self, function: tree.Function, names: dict[str, Any]) -> None:
        self.function, self.names = function, names


class _At(ModelError):
    """A refusal that already says where."""


class Lowering:
    """Evaluates one program.

    Args:
        program: parsed.
        constants: of its metadata section.
        path: names the file in messages.
    """

    def __init__(
        self,
        program: syntax.Program,
        constants: list[Array],
        path: object,
    ) -> None:
        self.program, self.constants, self.path = program, constants, path
        self.bb = relax.BlockBuilder()
        self.calls, self.depth = 0, 0
        self.hint = ""

    def refuse(self, at: tree.Place, why: str) -> _At:
        """An error that says where."""
        return _At(f"{self.path}, {syntax.at(at)}: {why}")

    def run(
        self, values: Mapping[str, Array], inputs: Mapping[str, tuple[int, ...]]
    ) -> tuple[tvm.IRModule, list[Any]]:
        """The module, and the outputs' expressions.

        Args:
            values: of `@main`'s parameters that are weights, by name with its sign.
            inputs: shapes of those that are not.
        """
        main = self.program.functions["@main"]
        taken: set[str] = set()
        args: list[Any] = []
        variables = []
        for param in main.params:
            name = param.name.text
            if name in values:
                args.append(relax.const(values[name], str(values[name].dtype)))
                continue
            plain = identifier(name[1:])
            while plain in taken:
                plain += "_"
            taken.add(plain)
            variables.append(relax.Var(plain, relax.TensorType(inputs[name], "float32")))
            args.append(variables[-1])
        with self.bb.function("main", variables), self._closing():
            with self.bb.dataflow():
                result = self._apply(_Closure(main, {}), args, main.at)
                outputs = list(result) if isinstance(result, tuple) else [result]
                for output in outputs:
                    self._tensor(output, main.body.result.at, "the program's result")
                if not outputs:
                    raise self.refuse(main.body.result.at, "the program returns nothing")
                made = relax.Tuple(outputs) if isinstance(result, tuple) else outputs[0]
                out = self.bb.emit_output(made)
            self.bb.emit_func_output(out)
        return self.bb.get(), outputs

    @contextlib.contextmanager
    def _closing(self) -> Iterator[None]:
        """After an error end the function's block, of which TVM would warn on stderr otherwise."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(RuntimeError):
                self.bb._end_block()
            raise

    # Expressions

    def _tensor(self, value: Any, at: tree.Place, what: str) -> Any:
        if isinstance(value, tuple | _Closure) or value is None:
            kind = "a tuple" if isinstance(value, tuple) else "a function"
            kind = "a dropout's mask" if value is None else kind
            raise self.refuse(at, f"{what} is {kind}: a tensor is needed")
        return value

    def _value(self, expr: tree.Expr, names: dict[str, Any]) -> Any:
        self.depth += 1
        try:
            if self.depth > _MAX_DEPTH:
                raise self.refuse(expr.at, f"expressions are nested more than {_MAX_DEPTH} deep")
            return self._evaluate(expr, names)
        finally:
            self.depth -= 1

    def _evaluate(self, expr: tree.Expr, names: dict[str, Any]) -> Any:
        match expr:
            case tree.Literal():
                try:
                    return relax.const(expr.value, expr.dtype)
                except (OverflowError, ValueError, TypeError, RuntimeError) as error:
                    why = f"{expr.value} is no {expr.dtype} that can be read"
                    raise self.refuse(expr.at, why) from error
            case tree.Name():
                return self._name(expr, names)
            case tree.Meta():
                return self._meta(expr)
            case tree.TupleOf():
                return tuple(self._value(f, names) for f in expr.fields)
            case tree.Project():
                return self._field(self._value(expr.source, names), expr.index, expr.at)
            case tree.Function():
                return _Closure(expr, names)
            case tree.Scope():
                return self._scope(expr, names)
            case tree.Call():
                return self._call(expr, names)
        raise self.refuse(expr.at, "this is not supported")

    def _name(self, name: tree.Name, names: dict[str, Any]) -> Any:
        text = name.text
        if text in names:
            return names[text]
        if text.startswith("@"):
            if text in self.program.functions:
                return _Closure(self.program.functions[text], {})
            raise self.refuse(name.at, f"there is no function {text}")
        head, _, last = text.rpartition(".")
        if head in names and last.isdigit():  # %p.0: a field, unless a variable has that name
            return self._field(names[head], int(last), name.at)
        if text.startswith("%"):
            raise self.refuse(name.at, f"{text} is not defined before it is used")
        raise self.refuse(name.at, f"operator {text} is used as a value: only calls are supported")

    def _field(self, value: Any, index: int, at: tree.Place) -> Any:
        if not isinstance(value, tuple):
            raise self.refuse(at, f"field {index} is taken of something that is no tuple")
        if index >= len(value):
            raise self.refuse(at, f"field {index} is taken of a tuple of {len(value)}")
        return value[index]

    def _meta(self, meta: tree.Meta) -> Any:
        if meta.kind != "relay.Constant":
            raise self.refuse(meta.at, f"meta[{meta.kind}] is not supported: only constants are")
        if meta.index >= len(self.constants):
            raise self.refuse(
                meta.at,
                f"constant {meta.index} is not in the metadata section, which has "
                f"{len(self.constants)}: save the text with mod.astext(show_meta_data=True)",
            )
        array = self.constants[meta.index]
        return relax.const(array, str(array.dtype))

    def _scope(self, scope: tree.Scope, names: dict[str, Any]) -> Any:
        """Bindings in order. `%0` stays known outside, which the printer relies on."""
        inner = dict(names)
        for name, declared, expr in scope.bindings:
            self.hint = name.text[1:]
            value = self._value(expr, inner)
            self._check_type(value, declared, name.at, name.text)
            inner[name.text] = value
            if name.text[1:].isdigit():
                names[name.text] = value
        self.hint = ""
        return self._value(scope.result, inner)

    def _apply(self, closure: _Closure, args: list[Any], at: tree.Place) -> Any:
        function = closure.function
        if len(args) != len(function.params):
            why = f"a function of {len(function.params)} parameters gets {len(args)}"
            raise self.refuse(at, why)
        names = dict(closure.names)
        for param, value in zip(function.params, args, strict=True):
            self._check_type(value, param.type, param.name.at, param.name.text)
            names[param.name.text] = value
        result = self._value(function.body, names)
        self._check_type(result, function.returns, function.at, "the function's result")
        return result

    def _check_type(self, value: Any, declared: tree.Type, at: tree.Place, what: str) -> None:
        """Compare a value with what the text says it is: a difference means a wrong import."""
        if isinstance(declared, tuple) and isinstance(value, tuple) and len(declared) == len(value):
            for field, kind in zip(value, declared, strict=True):
                self._check_type(field, kind, at, what)
        elif isinstance(declared, tree.TensorType) and hasattr(value, "ty"):
            own = tuple(int(d) for d in value.ty.shape)
            fits = len(own) == len(declared.shape) and all(
                d in (None, n) for n, d in zip(own, declared.shape, strict=True)
            )
            if not fits or str(value.ty.dtype) != declared.dtype:
                said = ",".join("?" if d is None else str(d) for d in declared.shape)
                raise self.refuse(
                    at,
                    f"{what} is declared {declared.dtype}[{said}] and comes out "
                    f"{value.ty.dtype}[{','.join(map(str, own))}]",
                )

    # Calls

    def _call(self, call: tree.Call, names: dict[str, Any]) -> Any:
        hint, self.hint = self.hint, ""
        callee = call.callee
        operator = isinstance(callee, tree.Name) and callee.text[0] not in "%@"
        if operator:
            assert isinstance(callee, tree.Name)
            self._known(callee)
        args = [self._value(a, names) for a in call.args]
        self.calls += 1
        if self.calls > _MAX_CALLS:
            raise self.refuse(call.at, f"the program makes more than {_MAX_CALLS} calls")
        if operator:
            assert isinstance(callee, tree.Name)
            return self._operator(callee, args, dict(call.attrs), hint)
        function = self._value(callee, names)
        if not isinstance(function, _Closure):
            raise self.refuse(call.at, "something that is no function is called")
        return self._apply(function, args, call.at)

    def _known(self, name: tree.Name) -> None:
        if name.text in OPS:
            return
        for start, why in _WHY.items():
            if name.text.startswith(start):
                raise self.refuse(name.at, f"operator {name.text} is {why}")
        raise self.refuse(
            name.at,
            f"operator {name.text} is not supported: save the program without it, or export the "
            "model to ONNX",
        )

    def _operator(self, name: tree.Name, args: list[Any], attrs: dict[str, Any], hint: str) -> Any:
        op = OPS[name.text]
        unknown = sorted(set(attrs) - set(op.attrs))
        if unknown:
            raise self.refuse(name.at, f"{name.text} has the attribute {unknown[0]}: unknown here")
        if not (op.args if op.least is None else op.least) <= len(args) <= op.args:
            raise self.refuse(name.at, f"{name.text} takes {op.args} arguments, not {len(args)}")
        for value in args:
            fields = value if isinstance(value, tuple) and name.text == "concatenate" else [value]
            for field in fields:
                self._tensor(field, name.at, f"an argument of {name.text}")
        label = identifier(f"{name.text.rpartition('.')[2]}_{hint}")
        try:
            made = op.convert(self.bb, args, {**op.attrs, **attrs})
            if isinstance(made, tvm.ir.Call):
                made = self.bb.emit(made, name_hint=label)
                made = _fold(name.text, args, made)
        except ModelError as error:
            raise self.refuse(name.at, f"{name.text}: {error}") from error
        except Exception as error:  # TVM raises whatever it likes: say where, keep the cause
            raise self.refuse(
                name.at, f"{name.text} cannot be imported: {_last_line(error)}"
            ) from error
        for value in made if isinstance(made, tuple) else (made,):
            self._check_value(value, name)
        return made

    def _check_value(self, value: Any, name: tree.Name) -> None:
        if value is None:
            return
        dtype, shape = str(value.ty.dtype), tuple(int(d) for d in value.ty.shape)
        if dtype not in _DTYPES:
            raise self.refuse(
                name.at, f"{name.text} computes in {dtype}: only float32 is supported"
            )
        if math.prod(shape) > _MAX_ELEMENTS or min(shape, default=1) < 1:
            raise self.refuse(name.at, f"{name.text} gives a tensor of the shape {shape}")


def _fold(name: str, args: list[Any], made: Any) -> Any:
    """The value of `made` where it depends on constants alone, else itself."""
    if name not in (*_FOLDED, *_RESHAPED):
        return made
    if not all(isinstance(a, tvm.ir.GenericConst) for a in args):
        return made
    arrays = [a.value.numpy() for a in args]
    if str(made.ty.dtype) != "float32" or math.prod(dims(made)) > _MAX_FOLDED:
        return made
    value = arrays[0].reshape(dims(made)) if name in _RESHAPED else _FOLDED[name](*arrays)
    return const(value)


def _last_line(error: BaseException) -> str:
    """TVM puts its C++ stack first and the reason last."""
    lines = [line for line in str(error).splitlines() if any(c.isalpha() for c in line)]
    return (lines or [type(error).__name__])[-1].strip()
