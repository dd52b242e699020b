"""Another application of Serve, that of somebody else."""

from ray import serve


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Hello:
    async def __call__(self) -> str:
        return "hello"


app = Hello.bind()
