"""Gradients of layers that are computed together, held in one tensor for each role from backward pass to update."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import keras
import tensorflow as tf

from easyrec_mm.training.row_gradients import Gradient


class StackedGradients:
    """Stacks the gradients of variables of a role, such as the kernels of many towers, and takes them apart again.

    What happens to gradients before an update (sums over workers, norms, checks, the condition on which the update
    depends) then needs operations for each role instead of each variable.

    Args:
      trained: the trained variables by name.
      together: variables of a shape, those of a role in one list; others have a role of their own.

    Attributes:
      names: name of the first variable of each role.
      variables: the first variable of each role.
      are_many: whether a role has many variables.
    """

    def __init__(
        self, trained: Mapping[str, keras.Variable], together: Sequence[Sequence[keras.Variable]] = ()
    ) -> None:
        role_of = {id(variable): role for role, of_role in enumerate(together) for variable in of_role}
        roles: dict[Hashable, list[str]] = {}
        for name, variable in trained.items():
            roles.setdefault(role_of.get(id(variable), name), []).append(name)
        self._roles = list(roles.values())
        self._trained = list(trained)
        self.names = [names[0] for names in self._roles]
        self.variables = [trained[name].value for name in self.names]
        self.are_many = any(len(names) > 1 for names in self._roles)

    def stacked(self, gradients: Sequence[Gradient]) -> list[Gradient]:
        """Return the gradient of each role from the gradients of the trained variables."""
        by_name = dict(zip(self._trained, gradients, strict=True))
        return [
            tf.stack([by_name[name] for name in names]) if len(names) > 1 else by_name[names[0]]
            for names in self._roles
        ]

    def by_variable(self, gradients: Mapping[str, Gradient]) -> dict[str, Gradient]:
        """Return the gradients of the trained variables by name from those of the roles by `names`."""
        single: dict[str, Gradient] = {}
        for names in self._roles:
            gradient = gradients.get(names[0])
            single |= zip(names, [gradient] if len(names) == 1 else tf.unstack(gradient), strict=True)
        return single
