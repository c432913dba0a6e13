"""Model servers that are read as vLLM is, by a metrics page of their own: SGLang, TGI, TEI, Triton. One module each; ``page`` reads for all."""
