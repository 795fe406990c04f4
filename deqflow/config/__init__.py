"""YAML -> validated components -> objects.

```yaml
seed: 0
data:  {kind: digits, batch_size: 128}
model: {kind: deq_classifier, width: 32, solver: {kind: anderson, rtol: 1e-4}}
task:  classification            # short for {kind: classification}
optim: {kind: adamw, lr: 1e-3}
train: {steps: 1000}
```

**Components.** A section names a component by its `kind`; the typed keyword arguments of the component's `__init__` are what else
it may say. Components nest, and the kind alone stands for a component whose defaults will do.

**Values.** YAML is version 1.2: `1e-4` is a number, `yes` is text. Numbers, truth values and text do not pass for one another, but
an integer is also a number, and a whole number written as `1e4` is also an integer. Numbers are finite, unless the argument's
range includes infinity as its bound.

**Extending.** `extends: base.yaml` (relative to the file that says so) lays a config over another: mappings are merged, all else is
replaced, and a component of another kind is replaced wholesale. Overrides such as `model.solver.rtol=1e-4` or
`model.cells.0.width=8` are laid on top in the same way.

**Plugins.** `plugins: [my_package.solvers]` imports modules that register components of your own (`deqflow.registry.register`), from
the current directory, the directory of the config, or what is installed.

Every mistake is reported, all at once, with its file and line; nothing here touches a device.
"""

from deqflow.config.component import Component
from deqflow.config.document import Config, differences, load, parse
from deqflow.config.errors import ConfigError, Problem, Where
from deqflow.config.json_schema import components, schema

__all__ = ["Component", "Config", "ConfigError", "Problem", "Where", "components", "differences", "load", "parse", "schema"]
