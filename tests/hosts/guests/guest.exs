# Calls what runs, then tries to load a model: prints the answer, and the codes of what is refused.
# With an argument it streams, and prints how that ends.
Application.put_all_env(
  vllm: [
    connect: System.fetch_env!("POOL"),
    server_key: System.fetch_env!("SERVER_KEY"),
    key: System.fetch_env!("KEY")
  ]
)

{:ok, _} = Application.ensure_all_started(:vllm)
Logger.configure(level: :none)

if System.argv() == ["stream"] do
  endless = %{"prompt" => "abc", "sampling_params" => %{"max_tokens" => 1_000_000, "ignore_eos" => true}}

  try do
    fn -> VLLM.Pool.request("echo", "generate", endless, stream: true) end
    |> VLLM.Pool.stream()
    |> Stream.with_index()
    |> Enum.each(fn {_, number} -> if number == 0, do: IO.puts("streams") end)
  rescue
    error in VLLM.Error -> IO.puts("#{error.code} #{error.message}")
  end

  System.halt(0)
end

args = %{"prompt" => "The capital of France is", "sampling_params" => %{"temperature" => 0.0, "max_tokens" => 8}}

case VLLM.Pool.call("tiny", "generate", args) do
  {:ok, %{"outputs" => [%{"text" => text}]}} ->
    IO.puts(text)
    {:error, error} = VLLM.llm("echo", name: "mine")
    IO.puts("#{error.code} #{error.details["role"]}")

  {:error, error} ->
    IO.puts("#{error.code} #{error.details["endpoint"]}")
end
