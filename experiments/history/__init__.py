"""The field's history, from the threshold unit of 1943 on: each file one source, one claim, one picture."""
