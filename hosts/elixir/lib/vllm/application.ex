defmodule VLLM.Application do
  @moduledoc false
  use Application

  @impl true
  def start(_type, _args) do
    Supervisor.start_link([VLLM.Pool], strategy: :one_for_one, name: VLLM.Supervisor)
  end
end
