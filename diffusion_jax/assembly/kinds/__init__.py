"""The kinds of model, one module each, with the same functions: settings.Kind says what they do."""
