defmodule VLLM.MixProject do
  use Mix.Project

  def project do
    [
      app: :vllm,
      version: "0.1.0",
      elixir: "~> 1.14",
      elixirc_paths: if(Mix.env() == :test, do: ["lib", "test/support"], else: ["lib"]),
      start_permanent: Mix.env() == :prod,
      description: "vLLM kept out of the VM: a supervised pool of workers behind a port",
      package: [
        licenses: ["MIT"],
        files: ~w(lib mix.exs .formatter.exs README.md LICENSE),
        links: %{}
      ],
      deps: []
    ]
  end

  def application, do: [mod: {VLLM.Application, []}, extra_applications: [:logger, :crypto]]
end
