toolkit: str
architectures: str
engine: object

def device_count() -> int: ...
