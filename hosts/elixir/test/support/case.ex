defmodule VLLM.Case do
  @moduledoc "What tests with a real pool have in common."
  use ExUnit.CaseTemplate

  using do
    quote do
      import VLLM.Case
      alias VLLM.{Error, Pool}
    end
  end

  @doc "Wait for a condition; fail if it takes too long."
  def eventually(condition, tries \\ 1000) do
    cond do
      condition.() ->
        :ok

      tries == 0 ->
        ExUnit.Assertions.flunk("it did not happen")

      true ->
        Process.sleep(20)
        eventually(condition, tries - 1)
    end
  end

  @doc "How many requests the engines hold."
  def unfinished, do: VLLM.status!()["workers"] |> Enum.map(& &1["unfinished"]) |> Enum.sum()

  @doc "The processes that make up the pool: what lives below the port, and itself."
  def family(os_pid) do
    {text, 0} = System.cmd("ps", ["-eo", "pid=,ppid="])

    parents =
      for line <- String.split(text, "\n", trim: true),
          do: line |> String.split() |> Enum.map(&String.to_integer/1)

    [os_pid | below(parents, os_pid)]
  end

  defp below(parents, pid),
    do: for([child, ^pid] <- parents, found <- [child | below(parents, child)], do: found)

  @doc "Whether none of these processes runs any more."
  def gone?(pids), do: not Enum.any?(pids, &File.exists?("/proc/#{&1}/exe"))

  @doc "Change the application environment for one test."
  def with_env(app, values) do
    before = Application.get_all_env(app)
    Application.put_all_env([{app, values}])

    ExUnit.Callbacks.on_exit(fn ->
      for {key, _} <- Application.get_all_env(app), do: Application.delete_env(app, key)
      Application.put_all_env([{app, before}])
    end)
  end
end
