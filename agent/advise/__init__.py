"""`flyball advise`: reads offers and prices, asks ``analyzers.advise``, and writes the answer as JSON and as a page."""
