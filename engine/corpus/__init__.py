"""The corpus: files, documents, and the passages and conversations that are cut from them."""
