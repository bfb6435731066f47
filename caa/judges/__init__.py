"""Who scores texts: classifiers, served and local models, embeddings."""
