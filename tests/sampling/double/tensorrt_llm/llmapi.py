from tensorrt_llm import CudaGraphConfig, KvCacheConfig, RequestError

__all__ = ["CudaGraphConfig", "KvCacheConfig", "RequestError"]
