# Calls what runs, then tries to load a model: prints the answer, and the codes of what is refused.
Application.put_all_env(
  vllm: [
    connect: System.fetch_env!("POOL"),
    server_key: System.fetch_env!("SERVER_KEY"),
    key: System.fetch_env!("KEY")
  ]
)

{:ok, _} = Application.ensure_all_started(:vllm)
args = %{"prompt" => "The capital of France is", "sampling_params" => %{"temperature" => 0.0, "max_tokens" => 8}}

case VLLM.Pool.call("tiny", "generate", args) do
  {:ok, %{"outputs" => [%{"text" => text}]}} ->
    IO.puts(text)
    {:error, error} = VLLM.llm("echo", name: "mine")
    IO.puts("#{error.code} #{error.details["role"]}")

  {:error, error} ->
    IO.puts("#{error.code} #{error.details["endpoint"]}")
end
