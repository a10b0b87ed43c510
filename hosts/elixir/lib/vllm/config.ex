defmodule VLLM.Config do
  @moduledoc """
  What the application environment says, read when it is needed.

  `config :vllm`:

    * `:connect` – endpoint of a pool that runs already; without it the application starts its own
    * `:server_key` and `:key` – for one on TCP: the pool's public key, and the path of one's own pair;
      else those of the environment variables VLLMPORT_SERVER_KEY and VLLMPORT_KEY
    * `:pool` – path of a `pool.toml` for that one
    * `:command` – the command, as a list; else that of the environment variable VLLMPORT, else the
      one of the interpreter, else `["vllmport"]`
    * `:patience` – milliseconds to try again where nobody answers at `:connect`; 10,000
    * `:v1_multiprocessing` – `:auto`, `:on` or `:off`, for models that do not say it themselves

  From `config :snakebridge` it takes `:runtime` (`:library_profiles`, `:timeout_profile`,
  `:profiles`), `:venv_path` and `:verbose`; from `config :snakepit`, `:python_executable` and
  `:environment`. So a configuration written for them goes on to work.
  """

  @profiles %{
    default: 120_000,
    streaming: 1_800_000,
    ml_inference: 600_000,
    batch_job: 3_600_000
  }

  @doc "The named timeouts in milliseconds: those of the protocol, and one's own on top."
  def profiles, do: Map.merge(@profiles, Map.new(runtime()[:profiles] || %{}))

  @doc """
  The milliseconds a call may take, or `:infinity`.

  An exact `:timeout` wins over a `:timeout_profile`, that over the library's and the general one of
  the configuration, and those over `default`. Raises VLLM.Error.
  """
  def timeout(runtime_opts, default) do
    runtime = runtime()
    library = (runtime[:library_profiles] || %{})["vllm"]

    profile =
      runtime_opts[:timeout_profile] || runtime_opts[:profile] || library ||
        runtime[:timeout_profile] || default

    case runtime_opts[:timeout] || profiles()[profile] do
      ms when (is_integer(ms) and ms > 0) or ms == :infinity ->
        ms

      nil ->
        known = profiles() |> Map.keys() |> inspect()

        raise VLLM.Error.invalid(
                :timeout_profile,
                profile,
                "unknown timeout profile #{inspect(profile)}; known: #{known}"
              )

      other ->
        raise VLLM.Error.invalid(
                :timeout,
                other,
                "a timeout is a number of milliseconds from 1, or :infinity"
              )
    end
  end

  @doc "The program to run as a port and its arguments: `{:ok, {path, args}}` or `{:error, error}`."
  def port_command do
    [program | args] = command()
    target = target()

    case System.find_executable(program) do
      nil ->
        message =
          "cannot find #{program}; install vllmport, or name its interpreter with " <>
            "`config :snakepit, python_executable: …` or `config :snakebridge, venv_path: …`"

        {:error, %VLLM.Error{code: :startup_failed, message: message, phase: "start"}}

      path ->
        {:ok, {path, args ++ ["port" | target]}}
    end
  end

  @doc "The environment of the port, as `Port.open/2` takes it."
  def port_env do
    for {key, name} <- [server_key: 'VLLMPORT_SERVER_KEY', key: 'VLLMPORT_KEY'],
        value = Application.get_env(:vllm, key),
        do: {name, to_charlist(value)}
  end

  @doc "The interpreter that the pool runs with, or nil where the command alone is known."
  def python do
    Application.get_env(:snakepit, :python_executable) ||
      venv_python(Application.get_env(:snakebridge, :venv_path))
  end

  @doc "How engines are to run where a model does not say it."
  def v1_multiprocessing, do: Application.get_env(:vllm, :v1_multiprocessing, :auto)

  @doc "For how many milliseconds to try again where nobody answers."
  def patience, do: Application.get_env(:vllm, :patience, 10_000)

  @doc "Whether each call is logged."
  def verbose?, do: Application.get_env(:snakebridge, :verbose, false)

  @doc "What this client calls itself in the supervisor's log."
  def client_name do
    case Application.get_env(:snakepit, :environment) do
      nil -> "elixir"
      environment -> "elixir #{environment}"
    end
  end

  @doc "The interpreter in a virtual environment, or nil."
  def venv_python(nil), do: nil

  def venv_python(venv) do
    Enum.find([Path.join(venv, "bin/python3"), Path.join(venv, "bin/python")], &File.exists?/1)
  end

  defp command do
    python = python()

    cond do
      command = Application.get_env(:vllm, :command) -> command
      command = System.get_env("VLLMPORT") -> String.split(command)
      python -> [python, "-m", "vllmport.pool.cli"]
      true -> ["vllmport"]
    end
  end

  defp target do
    case {Application.get_env(:vllm, :connect), Application.get_env(:vllm, :pool)} do
      {nil, nil} -> []
      {nil, config} -> [config]
      {endpoint, _} -> ["--connect", endpoint]
    end
  end

  defp runtime, do: Application.get_env(:snakebridge, :runtime, [])
end
