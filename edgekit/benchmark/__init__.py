"""How fast an OpenAI-compatible endpoint answers: scenarios, MLPerf's LoadGen, plots."""
