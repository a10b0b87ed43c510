defmodule VLLM.PoolTest do
  @moduledoc "A pool of one's own over a port: answers, deadlines, cancels, deaths."
  use VLLM.Case, async: false

  @endless [sampling_params: [max_tokens: 10_000_000, ignore_eos: true]]

  setup do
    {:ok, echo: VLLM.llm!("echo", name: "echo", step_delay: 0.001)}
  end

  test "the model answers what it was taught" do
    llm = VLLM.llm!("tiny", name: "taught")
    params = VLLM.sampling_params!(temperature: 0, max_tokens: 8)
    opts = [sampling_params: params, use_tqdm: false]

    assert [one, two] = VLLM.generate!(llm, ["The capital of France is", "1 2 3 4 5"], opts)
    output = one |> VLLM.attr!(:outputs) |> hd()
    assert VLLM.attr!(output, :text) == " Paris."
    assert VLLM.attr!(output, "finish_reason") == "stop"
    assert one.prompt == "The capital of France is"
    assert hd(two.outputs).text =~ " 6 7 8"

    question = [%{"role" => "user", "content" => "What is the capital of Japan?"}]
    assert [%{outputs: [%{text: text}]}] = VLLM.chat!(llm, [question], opts)
    assert text =~ "Tokyo"

    assert llm
           |> VLLM.stream_chat([%{role: :user, content: "What is the capital of Japan?"}], opts)
           |> Enum.map_join(& &1.text) == text

    assert llm |> VLLM.stream("The capital of France is", opts) |> Enum.map_join(& &1.text) ==
             " Paris."

    ids = VLLM.tokenize!(llm, "The capital of France is")
    assert VLLM.detokenize!(llm, ids) == "The capital of France is"
    assert [%{outputs: [%{text: " Paris."}]}] = VLLM.generate!(llm, ids, opts)

    assert [%{outputs: [%{text: " Paris."}]}] =
             VLLM.method!(llm, "generate", ["The capital of France is"], opts)

    scored = VLLM.sampling_params!(temperature: 0, max_tokens: 1, logprobs: 1)

    assert [%{outputs: [%{token_ids: [token], logprobs: [row]}]}] =
             VLLM.generate!(llm, "1 2 3", sampling_params: scored)

    assert row[token].logprob <= 0

    yes = VLLM.guided_decoding_params!(choice: ["yes", "no"])
    params = VLLM.sampling_params!(temperature: 0, max_tokens: 8, structured_outputs: yes)
    assert [%{outputs: [%{text: answer}]}] = VLLM.generate!(llm, "Well:", sampling_params: params)
    assert answer in ["yes", "no"]

    guided = [sampling_params: VLLM.sampling_params!(temperature: 0), guided_decoding_params: yes]
    assert [%{outputs: [%{text: ^answer}]}] = VLLM.generate!(llm, "Well:", guided)

    bad = VLLM.sampling_params!(max_tokens: 0)

    assert {:error, %Error{code: :invalid_request, details: %{"parameter" => "max_tokens"}}} =
             VLLM.generate(llm, "x", sampling_params: bad)

    assert_raise Error, ~r/max_tokens/, fn -> VLLM.generate!(llm, "x", sampling_params: bad) end
    assert {:error, %Error{code: :invalid_request}} = VLLM.embed(llm, "x")
    assert {:error, %Error{code: :invalid_request}} = VLLM.encode(llm, "x")
    VLLM.release(llm)
  end

  test "a deadline ends a call and says how far it came", %{echo: llm} do
    assert {:error,
            %Error{code: :deadline_exceeded, phase: "decode", details: %{"tokens" => tokens}}} =
             VLLM.generate(llm, "abc", VLLM.with_timeout(@endless, timeout: 200))

    assert tokens > 0
    eventually(fn -> unfinished() == 0 end)
  end

  test "leaving a stream early takes it out of the engine", %{echo: llm} do
    deltas = VLLM.stream(llm, "abc", @endless) |> Enum.take(300)
    assert Enum.map_join(deltas, & &1.text) =~ ~r/^(abc)+/
    eventually(fn -> unfinished() == 0 end)
  end

  test "a process that dies takes its calls out of the engine", %{echo: llm} do
    {:ok, task} = Task.start(fn -> VLLM.generate(llm, ["abc", "abc"], @endless) end)
    eventually(fn -> unfinished() == 2 end)
    Process.exit(task, :kill)
    eventually(fn -> unfinished() == 0 end)
  end

  test "many processes call at the same time", %{echo: llm} do
    answers =
      1..100
      |> Task.async_stream(fn n -> hd(VLLM.generate!(llm, "call #{n}")).outputs |> hd() end,
        max_concurrency: 100,
        timeout: 60_000
      )
      |> Enum.map(fn {:ok, output} -> output.text end)

    assert answers == Enum.map(1..100, &"call #{&1}")
  end

  test "the first failure of a list gives up the others", %{echo: llm} do
    prompts = ["abc", "abc", ""]
    assert {:error, %Error{code: :invalid_request}} = VLLM.generate(llm, prompts, @endless)
    eventually(fn -> unfinished() == 0 end)
  end

  test "a worker killed in the middle of a stream ends it with a typed error, and another one answers",
       %{echo: llm} do
    worker = Enum.find(VLLM.status!()["workers"], &(&1["model"] == llm.name))

    error =
      assert_raise Error, fn ->
        llm
        |> VLLM.stream("abc", @endless)
        |> Stream.with_index()
        |> Enum.each(fn {_, n} -> if n == 0, do: System.cmd("kill", ["-9", "#{worker["pid"]}"]) end)
      end

    assert %{code: :worker_lost, retryable: true, details: %{"exit" => "was killed by SIGKILL"}} =
             error

    assert [%{outputs: [%{text: "again"}]}] = VLLM.generate!(llm, "again")
  end

  test "a supervisor that is killed fails open calls with pool_lost, and the next call goes on by itself",
       %{echo: llm} do
    %{epoch: epoch} = Pool.info()
    task = Task.async(fn -> VLLM.generate(llm, "abc", @endless) end)
    eventually(fn -> unfinished() == 1 end)
    System.cmd("kill", ["-9", "#{VLLM.status!()["supervisor"]["pid"]}"])
    assert {:error, %Error{code: :pool_lost, retryable: true}} = Task.await(task, 60_000)

    assert [%{outputs: [%{text: "again"}]}] = VLLM.generate!(llm, "again"),
           "the model was loaded again"

    assert Pool.info().epoch not in [nil, epoch]
  end

  test "a port that is killed answers the callers, is started again, and leaves nothing of the old pool",
       %{echo: llm} do
    %{os_pid: port} = Pool.info()
    old = family(port)
    assert length(old) > 3
    task = Task.async(fn -> VLLM.generate(llm, "abc", @endless) end)
    eventually(fn -> unfinished() == 1 end)
    System.cmd("kill", ["-9", "#{port}"])
    assert {:error, %Error{code: :pool_lost}} = Task.await(task, 60_000)
    assert [%{outputs: [%{text: "again"}]}] = VLLM.generate!(llm, "again")
    eventually(fn -> gone?(old) end)
  end

  test "the process that owns the port may crash: callers are answered, and its supervisor starts it again" do
    llm = VLLM.llm!("echo", name: "other echo", step_delay: 0.001)
    %{os_pid: port} = Pool.info()
    old = family(port)
    task = Task.async(fn -> VLLM.generate(llm, "abc", @endless) end)
    eventually(fn -> unfinished() == 1 end)
    Process.exit(Process.whereis(Pool), :kill)
    assert {:error, %Error{code: :pool_lost}} = Task.await(task, 60_000)
    eventually(fn -> gone?(old) end)
    eventually(fn -> Process.whereis(Pool) != nil end)

    assert [%{outputs: [%{text: "again"}]}] =
             VLLM.generate!(VLLM.llm!("echo", name: "echo", step_delay: 0.001), "again")
  end

  # Another VM that streams for ever; it says the pid of its port first.
  defp other_vm(setting) do
    source = """
    Application.put_all_env(vllm: #{inspect(setting)})
    {:ok, _} = Application.ensure_all_started(:vllm)
    llm = VLLM.llm!("echo", name: "echo", step_delay: 0.001)
    IO.puts(VLLM.Pool.info().os_pid)
    VLLM.generate(llm, "abc", #{inspect(@endless)})
    """

    args = ["-pa", Mix.Project.compile_path(), "-e", source]
    elixir = System.find_executable("elixir")
    vm = Port.open({:spawn_executable, elixir}, [:binary, line: 100, args: args])
    assert_receive {^vm, {:data, {:eol, port}}}, 60_000
    {:os_pid, pid} = Port.info(vm, :os_pid)
    {pid, String.to_integer(port)}
  end

  test "a VM that is killed leaves nothing" do
    {vm, port} = other_vm([])
    everything = family(port)
    assert length(everything) > 3
    System.cmd("kill", ["-9", "#{vm}"])
    eventually(fn -> gone?(everything) end)
  end

  test "of two VMs on one pool, the one that is killed takes only its own calls along", %{echo: llm} do
    endpoint = VLLM.status!()["supervisor"]["endpoint"]
    {vm, port} = other_vm(connect: endpoint)
    task = Task.async(fn -> VLLM.stream(llm, "abc", @endless) |> Enum.take(2000) end)
    eventually(fn -> unfinished() == 2 end)
    System.cmd("kill", ["-9", "#{vm}"])
    eventually(fn -> gone?([port]) and unfinished() < 2 end)
    assert length(Task.await(task, 60_000)) == 2000
  end

  test "run starts the pool, stops it, and returns what the function returned" do
    {value, old} =
      VLLM.run(fn ->
        llm = VLLM.llm!("echo", name: "in a run")
        {hd(VLLM.generate!(llm, "Hello")).prompt, family(Pool.info().os_pid)}
      end)

    assert value == "Hello"
    eventually(fn -> gone?(old) end)
    assert_raise ArgumentError, "mine", fn -> VLLM.run(fn -> raise ArgumentError, "mine" end) end
    assert Pool.info().phase == :down
  end

  test "a command that is not there is a typed error" do
    Pool.close()
    with_env(:vllm, command: ["no-such-vllmport"])
    assert {:error, %Error{code: :startup_failed, message: message}} = VLLM.llm("tiny")
    assert message =~ "python_executable"
  end

  test "nobody at an endpoint is a typed error, after some patience" do
    Pool.close()
    with_env(:vllm, connect: "ipc:///tmp/nobody-is-here.sock", patience: 300)
    assert {:error, %Error{code: :connect_failed}} = VLLM.status()
  end
end
