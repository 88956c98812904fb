"""The options of ``glip serve``."""

from glip.config import Count, CountOrZero, Dtype, Rate, Share, option
from glip.schema import checked


@checked
class ServeConfig:
    """Where ``glip serve`` listens, who may ask, and how much."""

    host: str = option("127.0.0.1", "address to listen on; one that other machines can reach needs --token")
    port: int = option(8000, "port; 0: any free one", ge=0, le=65535)
    token: str | None = option(
        None, "what requests must send (default: environment variable GLIP_TOKEN)", min_length=8, max_length=1000
    )
    insecure: bool = option(False, "let everyone who reaches --host ask, without a token")
    task: tuple[str, ...] = option((), "task.safetensors from glip tune to serve too, as NAME=FILE; may be repeated")
    label_studio: str | None = option(
        None,
        "address of the only Label Studio whose images are fetched, such as http://localhost:8080; its access token is "
        "the environment variable LABEL_STUDIO_API_KEY (default: images must be in the request)",
    )
    threshold: Share | None = option(None, "lowest score, unless a request gives one (default: the task's or model's)")
    batch_size: Count = option(4, "most images per forward pass")
    wait_ms: Rate = option(5.0, "longest wait for further images of a forward pass, in milliseconds")
    text_cache: CountOrZero = option(64, "encoded prompts kept for the next requests")
    queue: Count = option(64, "most requests at once; others are answered with 503")
    timeout: float = option(60.0, "seconds to send a request, and again to wait for its answer", gt=0)
    max_mb: float = option(20.0, "largest request, in MB", gt=0)
    max_pixels: Count = option(25_000_000, "most pixels of an image")
    max_images: Count = option(16, "most images of a request (Label Studio: as many as fit in --max-mb)")
    max_names: Count = option(1_000, "most names of a request")
    dtype: Dtype = option("float32", "number type, as for glip detect")
