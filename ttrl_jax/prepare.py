"""Compile the programs of a run in parallel before anything runs, on devices for which a run has few programs."""

from collections.abc import Callable

import jax
import numpy as np

from ttrl_jax.model.sharding import key_on, of_hosts, stands_for_this_host
from ttrl_jax.programs import asks_entropies, uses_policy
from ttrl_jax.rollout import copies
from ttrl_jax.rollout.shapes import FewShapes
from ttrl_jax.run.compiled import in_parallel
from ttrl_jax.session import Session, step_key


def prepare(session: Session, *, say: Callable[[str], None]) -> None:
    """Compile what takes long. say: gets lines that tell how far it is. On CPUs nothing is done: they compile what is
    needed when it is needed."""
    if not isinstance(session.sampler.shapes, FewShapes):
        return
    inputs, mesh, host = session.inputs, session.inputs.mesh, session.host
    weights = copies.layout(inputs.model, of_hosts(mesh) if host else mesh, session.sampler.dtype)
    config, layout, learning = session.config, session.layout, []
    under = {} if inputs.model.lora is None else copies.base_layout(inputs.model, mesh, session.sampler.dtype)
    with jax.set_mesh(mesh):
        key = key_on(mesh, step_key(session, 0))
        for name, learner in session.learners.items():
            base = under | layout.policy.params if uses_policy(config, name) else under or None
            rows = config.rollout.prompts * config.train.samples
            asked = asks_entropies(config, name)
            learning += learner.work(layout.models[name], base=base, rows=rows, scores=asked)
    numbers = np.asarray(jax.random.key_data(key))
    with jax.set_mesh(host or mesh):
        if host:
            weights, key = jax.tree.map(stands_for_this_host, weights), jax.random.wrap_key_data(numbers)
        way = dict(sampling=session.sampling, prompts=config.rollout.prompts)
        sampling = list(session.sampler.work(weights, key, **way))
    in_parallel([(host or mesh, task) for task in sampling] + [(mesh, task) for task in learning], announce=say)
