"""What is really happening inside a trained network: each file one question, one claim, one picture."""
