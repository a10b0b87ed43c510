defmodule VLLM.ConfigHelper do
  @moduledoc "For `config/runtime.exs`: finds the interpreter and settles how engines are to run."

  require Logger

  @modes [:auto, :on, :off]

  @doc """
  Set `:snakepit, :python_executable` and `:vllm, :v1_multiprocessing` from options and configuration.

  Options: `:v1_multiprocessing`, `:venv_path`. An interpreter that is configured already stays; else
  the first of SNAKEBRIDGE_VENV, `:venv_path`, `config :snakebridge, :venv_path` and `./.venv` that
  has one is taken, else the `vllmport` on the path.

  `:on` needs process groups that can be cleaned up and raises ArgumentError without; `:auto` is then
  off, with a warning. On Linux they can, unless `config :snakepit, process_group_kill: false`.
  """
  def configure_snakepit!(opts \\ []) do
    mode = Keyword.get(opts, :v1_multiprocessing, VLLM.Config.v1_multiprocessing())

    unless mode in @modes do
      raise ArgumentError,
            "invalid :v1_multiprocessing mode: #{inspect(mode)} (expected :auto | :on | :off)"
    end

    Application.put_env(:vllm, :v1_multiprocessing, settle(mode, cleanup_available?()))

    if Application.get_env(:snakepit, :python_executable) == nil do
      python = Enum.find_value(venvs(opts), &VLLM.Config.venv_python/1)
      if python, do: Application.put_env(:snakepit, :python_executable, python)
    end

    :ok
  end

  defp settle(mode, true), do: mode
  defp settle(:off, false), do: :off

  defp settle(:on, false) do
    raise ArgumentError,
          "v1_multiprocessing: :on needs process-group cleanup, which takes Linux and " <>
            "`config :snakepit, process_group_kill: true`; use :auto or :off"
  end

  defp settle(:auto, false) do
    Logger.warning(
      "no process-group cleanup here: engines run in one process; say v1_multiprocessing: :off to silence this"
    )

    :off
  end

  defp cleanup_available? do
    :os.type() == {:unix, :linux} and Application.get_env(:snakepit, :process_group_kill, true)
  end

  defp venvs(opts) do
    [
      System.get_env("SNAKEBRIDGE_VENV"),
      opts[:venv_path],
      Application.get_env(:snakebridge, :venv_path),
      Path.expand(".venv")
    ]
  end
end
