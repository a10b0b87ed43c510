defmodule VLLM.ApiTest do
  @moduledoc "The functions there are, and what of them needs no pool."
  use VLLM.Case, async: false

  @functions [
    run: 1..2,
    llm: 1..2,
    sampling_params: 0..1,
    generate: 2..3,
    chat: 2..3,
    encode: 2..3,
    embed: 2..3,
    pooling_params: 0..1,
    lora_request: 3..4,
    guided_decoding_params: 0..1,
    engine: 1..2,
    async_engine: 1..2,
    call: 2..4,
    get: 2..3,
    method: 2..4,
    attr: 2..2,
    set_attr: 3..3,
    version: 0..0
  ]

  test "every function has its arities and, but for run, a twin with a bang" do
    Code.ensure_loaded!(VLLM)

    for {name, arities} <- @functions, arity <- arities do
      assert function_exported?(VLLM, name, arity), "#{name}/#{arity}"

      unless name == :run,
        do: assert(function_exported?(VLLM, :"#{name}!", arity), "#{name}!/#{arity}")
    end

    for {name, arity} <- [with_timeout: 2, timeout_profile: 1, timeout_ms: 1, ref?: 1, bytes: 1],
        do: assert(function_exported?(VLLM, name, arity))
  end

  test "timeouts are merged into the options beside what is there" do
    opts =
      VLLM.with_timeout([sampling_params: :mine, __runtime__: [session_id: 1]],
        timeout_profile: :batch_job
      )

    assert opts[:sampling_params] == :mine
    assert opts[:__runtime__] == [session_id: 1, timeout_profile: :batch_job]
    assert VLLM.timeout_profile(:streaming) == [__runtime__: [timeout_profile: :streaming]]
    assert VLLM.timeout_ms(5) == [__runtime__: [timeout: 5]]
    assert_raise FunctionClauseError, fn -> VLLM.timeout_profile(:nonsense) end

    for bad <- [0, -100, 60.5],
        do: assert_raise(FunctionClauseError, fn -> VLLM.timeout_ms(bad) end)

    assert_raise FunctionClauseError, fn -> VLLM.run(:no_function) end
  end

  test "an exact timeout wins over a profile, that over the library's, that over the general one" do
    with_env(:snakebridge,
      runtime: [
        timeout_profile: :default,
        library_profiles: %{"vllm" => :batch_job},
        profiles: %{short: 7}
      ]
    )

    assert VLLM.Config.timeout([timeout: 5, timeout_profile: :default], :ml_inference) == 5
    assert VLLM.Config.timeout([timeout_profile: :short], :ml_inference) == 7
    assert VLLM.Config.timeout([], :ml_inference) == 3_600_000
    Application.put_env(:snakebridge, :runtime, timeout_profile: :default)
    assert VLLM.Config.timeout([], :ml_inference) == 120_000
    Application.delete_env(:snakebridge, :runtime)
    assert VLLM.Config.timeout([], :ml_inference) == 600_000

    for bad <- [[timeout: 0], [timeout_profile: :nonsense]],
        do: assert_raise(VLLM.Error, fn -> VLLM.Config.timeout(bad, :default) end)
  end

  test "what cannot be done says why" do
    assert {:error, %VLLM.Error{}} = VLLM.set_attr(%VLLM.RequestOutput{}, "prompt", "x")
    assert {:error, %VLLM.Error{}} = VLLM.method("text", "upper")
    assert {:error, %VLLM.Error{message: message}} = VLLM.attr(%VLLM.CompletionOutput{}, :tokens)
    assert message =~ "token_ids"
    assert {:error, %VLLM.Error{}} = VLLM.lora_request(:name, 1, "/folder")

    assert {:error, %VLLM.Error{message: message}} =
             VLLM.generate(%VLLM.LLM{name: "m", model: "m"}, self())

    assert message =~ "no form on the wire"
  end

  test "objects are known as such" do
    assert VLLM.ref?(VLLM.sampling_params!())
    refute VLLM.ref?(%{})
    assert VLLM.bytes("a") == %VLLM.Bytes{data: "a"}
    assert VLLM.attr!(VLLM.sampling_params!(n: 2), :params) == %{n: 2}
    assert VLLM.guided_decoding_supported?()
  end

  describe "configure_snakepit!" do
    setup do
      with_env(:vllm, [])
      with_env(:snakepit, [])
      with_env(:snakebridge, [])
      :ok
    end

    test "refuses modes that there are not" do
      assert_raise ArgumentError, ~r/expected :auto/, fn ->
        VLLM.ConfigHelper.configure_snakepit!(v1_multiprocessing: :maybe)
      end
    end

    test "settles the mode by whether process groups can be cleaned up" do
      for mode <- [:auto, :on, :off] do
        assert VLLM.ConfigHelper.configure_snakepit!(v1_multiprocessing: mode) == :ok
        assert VLLM.Config.v1_multiprocessing() == mode
      end

      Application.put_env(:snakepit, :process_group_kill, false)

      assert_raise ArgumentError, ~r/process-group cleanup/, fn ->
        VLLM.ConfigHelper.configure_snakepit!(v1_multiprocessing: :on)
      end

      VLLM.ConfigHelper.configure_snakepit!(v1_multiprocessing: :auto)
      assert VLLM.Config.v1_multiprocessing() == :off
    end

    test "finds an interpreter, unless one is configured" do
      venv = Path.join(System.tmp_dir!(), "venv-#{System.pid()}")
      File.mkdir_p!(Path.join(venv, "bin"))
      File.touch!(Path.join(venv, "bin/python3"))
      on_exit(fn -> File.rm_rf!(venv) end)
      VLLM.ConfigHelper.configure_snakepit!(venv_path: venv)
      assert VLLM.Config.python() == Path.join(venv, "bin/python3")
      Application.put_env(:snakepit, :python_executable, "/my/python")
      VLLM.ConfigHelper.configure_snakepit!(venv_path: venv)
      assert VLLM.Config.python() == "/my/python"
    end
  end
end
