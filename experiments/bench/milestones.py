"""What the training of milestone systems took, as published.

Such figures are estimates, which often differ by a factor of two and for reinforcement learning by far more: Epoch AI
puts AlphaGo Zero at 6.5e20.

    [1] Amodei, Hernandez 2018, "AI and compute", https://openai.com/index/ai-and-compute, appendix: its counts of
        operations rather than its estimates from GPU time, where it has both. It says that AlphaGo Zero took 300,000
        times as much as AlexNet; there it uses its other estimate of AlexNet, 0.0058 petaflop/s-days or 5e17.
    [2] Epoch AI, "Data on notable AI models", https://epoch.ai/data, as of 2025; begun by Sevilla et al. 2022, "Compute
        trends across three eras of machine learning".
    [3] Vaswani et al. 2017, "Attention is all you need", table 2: the big model.
    [4] Brown et al. 2020, "Language models are few-shot learners", table D.1.
    [5] Computed: 340,908 connections (LeCun et al. 1998, section II-B), two operations each, three times for forward,
        backward and gradient, 60,000 images, 20 passes.
"""

DAY = 1e15 * 86_400  # operations in a petaflop/s-day
MILESTONES = (  # year, system, operations, source
    (1958, "Perceptron", 6.9e5, 2),
    (1987, "NETtalk", 2.8e10, 2),
    (1992, "TD-Gammon", 2e13, 2),
    (1998, "LeNet-5", 340_908 * 2 * 3 * 60_000 * 20, 5),
    (2000, "Neural language model", 6.3e15, 2),
    (2012, "AlexNet", 4.7e17, 1),
    (2013, "DQN", 2.3e15, 1),
    (2013, "Deconvnet (ZFNet)", 5.3e17, 1),
    (2014, "Align and translate", 0.018 * DAY, 1),
    (2014, "VGG", 8.5e18, 1),
    (2014, "Seq2Seq", 7.3e18, 1),
    (2015, "ResNet-152", 1.04e19, 2),
    (2015, "Deep Speech 2", 2.6e19, 1),
    (2016, "Xception", 4.5e20, 1),
    (2016, "Architecture search", 1.9e21, 1),
    (2016, "GNMT", 6.9e21, 1),
    (2017, "Transformer", 2.3e19, 3),
    (2017, "AlphaGo Zero", 300_000 * 5e17, 1),
    (2018, "BERT-large", 2.85e20, 2),
    (2019, "GPT-2", 1.92e21, 2),
    (2020, "GPT-3", 3.14e23, 4),
    (2022, "PaLM", 2.53e24, 2),
    (2023, "GPT-4", 2.1e25, 2),
)
