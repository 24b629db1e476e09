"""The process that holds a TensorRT-LLM engine. `worker.py` stands alone here because it is started as a file: Python
then looks for modules in its folder first, where nothing may be called like a package that the engine imports.
"""
