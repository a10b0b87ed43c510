defmodule VLLM.UniversalTest do
  @moduledoc "Universal calls over a port: refs held, methods called, generators streamed, workers lost."
  use VLLM.Case, async: false

  alias VLLM.{Ref, Runtime}

  defp echo(name) do
    llm = VLLM.llm!("echo", name: name)
    on_exit(fn -> VLLM.release(llm) end)
    llm
  end

  test "a ref is held, read, called, passed on and released" do
    llm = echo("universal")

    assert {:ok, %Ref{type: "decimal.Decimal"} = two} =
             Runtime.call(llm, "decimal", "Decimal", ["2.25"])

    assert {:ok, root} = Runtime.method(two, "sqrt")
    assert {:ok, {0, [1, 5], -1}} = root |> sign()
    assert {:ok, same} = Runtime.call(llm, "fractions", "Fraction.from_decimal", [root])
    assert VLLM.attr!(same, :numerator) == 3

    assert VLLM.method!(same, "limit_denominator", [], max_denominator: 1)
           |> VLLM.attr!("numerator") == 1

    assert {:ok, "slept"} = Runtime.call(llm, "asyncio", "sleep", [0], result: "slept")
    assert :ok = Runtime.release([two, root, same])
    assert :ok = Runtime.release(two)
    assert {:error, %Error{code: :session_lost}} = Runtime.method(two, "sqrt")
  end

  defp sign(ref) do
    with {:ok, {sign, digits, exponent}} <- Runtime.method(ref, "as_tuple"),
         do: {:ok, {sign, Tuple.to_list(digits), exponent}}
  end

  test "an endless iterator is streamed as far as it is read" do
    llm = echo("streamed")
    numbers = Runtime.stream(llm, "itertools", "count", [5])
    assert Enum.take(numbers, 700) == Enum.to_list(5..704)
    {:ok, counter} = Runtime.call(llm, "itertools", "count")
    assert counter |> Runtime.iterate() |> Enum.take(3) == [0, 1, 2]
    eventually(fn -> in_flight() == 0 end)
  end

  defp in_flight, do: VLLM.status!()["workers"] |> Enum.map(& &1["in_flight"]) |> Enum.sum()

  test "names that are not on the list are refused" do
    llm = echo("refused")
    {:ok, two} = Runtime.call(llm, "decimal", "Decimal", [2])

    for {:error, error} <- [
          Runtime.call(llm, "os", "system", ["true"]),
          Runtime.attr(two, "__class__"),
          Runtime.get(llm, "decimal", "Decimal"),
          Runtime.call(llm, "asyncio", "subprocess.create_subprocess_shell", ["true"])
        ],
        do: assert(error.code == :not_allowed)

    assert {:error, %Error{code: :engine_error, details: %{"class" => "decimal.InvalidOperation"}}} =
             Runtime.call(llm, "decimal", "Decimal", ["none"])
  end

  test "sessions have names, and end" do
    llm = echo("named")
    {:ok, mine} = Runtime.call(llm, "decimal", "Decimal", [1], [], session: "mine")
    {:ok, other} = Runtime.call(llm, "decimal", "Decimal", [2], [], session: "other")
    assert mine.session != other.session
    assert :ok = Runtime.end_session(llm, session: "mine")
    assert {:error, %Error{code: :session_lost}} = Runtime.method(mine, "sqrt")
    assert {:ok, %Ref{}} = Runtime.method(other, "sqrt")
  end

  test "a lost worker is a lost session until it is ended" do
    llm = echo("mortal")
    {:ok, two} = Runtime.call(llm, "decimal", "Decimal", [2])
    [worker] = Enum.filter(VLLM.status!()["workers"], &(&1["model"] == "mortal"))
    System.cmd("kill", ["-9", "#{worker["pid"]}"])
    eventually(fn -> match?({:error, %Error{code: :session_lost}}, Runtime.method(two, "sqrt")) end)
    assert :ok = Runtime.end_session(llm)
    assert {:ok, %Ref{} = again} = Runtime.call(llm, "decimal", "Decimal", [2])
    assert {:error, %Error{code: :session_lost}} = Runtime.method(two, "sqrt")
    assert {:ok, %Ref{}} = Runtime.method(again, "sqrt")
  end

  test "objects of vLLM itself" do
    llm = VLLM.llm!("tiny", name: "vllm")
    opts = [__runtime__: [llm: llm]]
    params = VLLM.call!("vllm", "SamplingParams", [], [{:max_tokens, 8}, {:stop, ["x"]} | opts])
    assert VLLM.ref?(params)
    assert VLLM.attr!(params, :max_tokens) == 8
    assert VLLM.set_attr!(params, "max_tokens", 9)
    assert params |> VLLM.method!("clone") |> VLLM.attr!("max_tokens") == 9
    assert {:ok, made} = VLLM.Api.sampling_params(llm, n: 2)
    assert VLLM.attr!(made, "n") == 2
    tokenizer = VLLM.get!("engine", "tokenizer", opts)
    assert VLLM.method!(tokenizer, "encode", ["1 2 3"]) == VLLM.tokenize!(llm, "1 2 3")
    defaults = Runtime.stream(llm, "vllm.config", "iter_architecture_defaults")
    assert Enum.all?(defaults, fn {suffix, _} -> is_binary(suffix) end)
    assert {:error, %Error{code: :not_allowed}} = VLLM.call("vllm", "LLM", ["tiny"], opts)
    VLLM.release(llm)
  end
end
