[inputs: ["mix.exs", "lib/**/*.ex", "test/support/*.ex", "test/*.exs"], line_length: 100]
